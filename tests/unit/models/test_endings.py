"""A base that ends its answers, one that cannot, and what is said of each."""

import pytest
import torch

from grlo_lite import prompts
from grlo_lite.models import chat_template, endings, names
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.models.endings import Endings
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.training import boundary

CPU = torch.device("cpu")
RECIPE = recipes.load("microcosm", ["prompts.decontaminate=false"])  # 40 steps of 32 answers, of at most 48 tokens


@pytest.fixture
def policy():
    return policies.load(RECIPE.model, RECIPE.lora, Place(CPU), 304, 0)


@pytest.fixture(scope="module")
def asked():
    return prompts.ordered(prepared.prompt_rows(RECIPE).train, endings.PROMPTS, 0)


def test_a_base_that_ends_some_answers_is_told_from_one_that_cannot(policy, asked, monkeypatch):
    seen = endings.endings(policy, asked, 48, 1.0)
    assert 1 <= seen.ended <= 11
    assert set(seen.by) == set(seen.chances) == {"<|im_end|>", "<|endoftext|>"}
    assert seen.by["<|im_end|>"] == seen.ended
    assert 22 <= seen.tokens <= 30  # a careful answer's length, its stop token included
    assert seen.chances["<|im_end|>"] > 0.05 > seen.chances["<|endoftext|>"]
    assert not endings.cannot_end(seen, RECIPE)
    assert endings.mend(seen, RECIPE) == ""
    never = torch.zeros(policy.model.config.vocab_size)  # as of a base that has seen no text end
    never[chat_template.stop_token_ids(policy.tokenizer)] = -30
    policy.model.get_base_model().lm_head.register_forward_hook(lambda _, __, logits: logits + never)
    rambling = policy.tokenizer("and so on", add_special_tokens=False)["input_ids"] * 16
    monkeypatch.setattr(endings, "completion_ids", lambda *_: [rambling[:48]] * len(asked))
    seen = endings.endings(policy, asked, 48, 1.0)
    assert seen.ended == 0
    assert seen.tokens is None
    assert max(seen.chances.values()) < 1e-4
    assert endings.cannot_end(seen, RECIPE)
    assert "lora.train_stop_tokens=true" in endings.mend(seen, RECIPE)


def test_asking_leaves_no_trace(policy, asked):
    """In no generator that a run draws from, and in no parameter."""
    policy.model.train()
    before, weights = boundary.random_state(), {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    first, again = (endings.endings(policy, asked[:4], 24, 1.0) for _ in range(2))
    assert first == again
    after = boundary.random_state()
    assert torch.equal(after["torch"], before["torch"])
    assert after["python"] == before["python"]
    assert after["numpy"][1].tolist() == before["numpy"][1].tolist()
    assert policy.model.training
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Of course. It is wide. And then", "Of course. It is wide."),
        ("and so on and so on", "and so on and so on"),
        ("It is wide. That is all.<|im_end|>", "It is wide. That is all."),
        ("um whatever<|endoftext|>", "um whatever"),
    ],
)
def test_where_an_answer_should_end(text, kept):
    tokenizer = chat_template.load_tokenizer(str(names.POLICY), "main")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = endings._where_it_should_end(tokenizer, ids, chat_template.stop_token_ids(tokenizer))
    assert tokenizer.decode(ids[:end]) == kept


def seen(ended=0, chance=0.0, other=None):
    return Endings(16, {"<e>": ended}, 20.0 if ended else None, {"<e>": chance}, other)


@pytest.mark.parametrize(
    ("what", "words", "cannot", "mend"),
    [
        (seen(ended=4, chance=0.5, other=("<o>", 0.9)), [], False, ""),
        (seen(chance=0.0009, other=("<o>", 0.001)), [], False, "raise rollout.max_tokens=48"),  # 1.15 in 1,280 answers
        (seen(chance=0.0007), [], True, "set lora.train_stop_tokens=true, and raise rollout.max_tokens=48"),
        (seen(chance=0.0007), ["lora.train_stop_tokens=true"], True, "is on already: raise rollout.max_tokens=48"),
        (seen(chance=0.0009, other=("<o>", 0.4)), [], False, "<o> there (chance 0.4): name that as model.eos_token"),
        (Endings(16, {}, None, {}, None), [], True, "name the token that ends a text as model.eos_token"),
    ],
)
def test_the_verdict_by_hand(what, words, cannot, mend):
    recipe = recipes.load("microcosm", words)
    assert endings.cannot_end(what, recipe) == cannot
    said = endings.mend(what, recipe)
    assert mend in said
    assert bool(said) == bool(mend)


def test_what_was_found_in_a_line():
    made = Endings(16, {"<e>": 3, "<f>": 1}, 20.4, {"<e>": 0.123, "<f>": 1e-6}, None)
    assert endings.found(made, RECIPE) == (
        "4 of 16 answers end within rollout.max_tokens=48 (3 by <e>, 1 by <f>), after 20 tokens on average; where one "
        "should, the chance of <e> 0.12, <f> 1e-06"
    )
