"""No false alarm on small pairs of each family's kind, whatever their BOS is, and each planted fault still found."""

import math
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from grlo_lite.checks import reward_model as checks_of
from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS
from grlo_lite.checks.endings import endings_check
from grlo_lite.models import loading, reward_model
from grlo_lite.models.backends import Place
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Judge

PAIRS = checks_of.clear_pairs("Skywork/Skywork-Reward-V2-Qwen3-4B")
CPU = torch.device("cpu")
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
)
# its BOS, whether the tokenizer puts it in front by itself, EOS, pad, template, and its models
FAMILIES = {
    "qwen": (None, False, "<|im_end|>", "<|endoftext|>", CHATML, Qwen3Config, Qwen3ForSequenceClassification),
    "llama": ("<|begin_of_text|>", True, "<|eot_id|>", None, HEADERS, LlamaConfig, LlamaForSequenceClassification),
    "gemma": ("<bos>", True, "<end_of_turn>", "<pad>", TURNS, Gemma2Config, Gemma2ForSequenceClassification),
    "smollm2": (
        "<|im_start|>",
        False,
        "<|im_end|>",
        None,
        SYSTEM + CHATML,
        LlamaConfig,
        LlamaForSequenceClassification,
    ),
}
POLICIES = {
    "qwen": (Qwen3ForCausalLM, "<|im_end|>"),
    "llama": (LlamaForCausalLM, "<|eot_id|>"),
    "gemma": (Gemma2ForCausalLM, "<end_of_turn>"),
    "smollm2": (LlamaForCausalLM, "<|im_end|>"),
}
MARKS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
]


def tokenizer_of(family):
    bos, in_front, eos, pad, template, *_ = FAMILIES[family]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator((text for pair in PAIRS for text in pair), trainer)
    if in_front:
        made.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, made.token_to_id(bos))])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=template
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A tiny reward model of the family that has learnt the clear pairs by heart, saved."""
    *_, kind, classifier = FAMILIES[request.param]
    path, tokenizer = tmp_path_factory.mktemp(request.param), tokenizer_of(request.param)
    torch.manual_seed(0)
    model = classifier(
        kind(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_labels=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=32, pad_token_id=0,
        )
    )  # fmt: skip
    scorer = reward_model.RewardModel(model, tokenizer, 512, 8192)
    rows = [scorer.token_ids(checks_of.conversation(q, answer)) for q, *both in PAIRS for answer in both]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows])
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        hidden = model.base_model(
            input_ids=ids, attention_mask=(ids.new_tensor(range(ids.shape[1])) < lengths[:, None])
        )
        scores = model.score(hidden[0][torch.arange(len(rows)), lengths - 1])[:, 0]
        loss = -torch.nn.functional.logsigmoid(scores[::2] - scores[1::2]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def scorer(folder):
    return reward_model.load(Judge(name=str(folder)), CPU, 512, 8192)


def test_a_healthy_pair_raises_no_alarm(scorer, folder):
    checks = checks_of.reward_checks(scorer, PAIRS)
    assert [check for check in checks if check.status == FAIL] == []
    assert {check.name: check.status for check in checks}["one BOS"] == (
        NOT_APPLICABLE if folder.name.startswith("qwen") else PASS
    )


def test_a_bos_too_many_and_a_missing_one_are_found(scorer):
    bos, plain = scorer.tokenizer.bos_token_id, scorer.token_ids
    if bos is None:
        assert checks_of.bos_check(scorer, PAIRS).status == NOT_APPLICABLE
        return
    scorer.token_ids = lambda conversation: [bos, *plain(conversation)]
    assert checks_of.bos_check(scorer, PAIRS).status == FAIL
    scorer.token_ids = lambda conversation: plain(conversation)[1:]
    assert checks_of.bos_check(scorer, PAIRS).status == FAIL


def test_a_pad_that_is_read_as_the_last_token_is_found(scorer):
    """Every row of a batch is read at the longest one's end."""

    def at_the_last_position(rows):
        ids = torch.tensor([row + (0,) * (len(rows[-1]) - len(row)) for row in rows])
        hidden = scorer.model.base_model(input_ids=ids, attention_mask=ids.ne(0).long(), use_cache=False)[0]
        return scorer.model.score(hidden[:, -1].float())[:, 0].tolist()

    scorer._scores_of = at_the_last_position
    assert checks_of.pooling_check(scorer, PAIRS).status == FAIL


def test_a_head_in_16_bits_and_a_taste_upside_down_are_found(scorer):
    score = scorer.score
    scorer.score = lambda conversations: [-value for value in score(conversations)]
    assert checks_of.order_check(scorer, PAIRS).found == "0 of 40"
    assert "it prefers bad answers" in checks_of.order_check(scorer, PAIRS).mend
    scorer.model.score.bfloat16()
    assert checks_of.head_check(scorer).status == FAIL


def test_the_marks_of_another_family_are_found(scorer):
    scorer.tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m['role'] }}{{ m['content'] }}{% endfor %}"
    check = checks_of.template_check(scorer.tokenizer)
    assert check.status == FAIL
    assert "<|turn|>" in check.found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("chance", "status"), [(0.05, PASS), (1e-9, FAIL)])
def test_a_policy_that_can_end_its_answers_is_told_from_one_that_cannot(family, chance, status, tmp_path):
    """Its layers add nothing, and one number is 1 in every embedding: all tokens are as likely, but the stop tokens."""
    (causal, stop), kind, tokenizer = POLICIES[family], FAMILIES[family][5], tokenizer_of(family)
    model = causal(
        kind(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, head_dim=32,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.zero_()[:, 0] = 1  # normed, the square root of 64
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(stop), 0] = (
            math.log(chance / (1 - chance) * (len(tokenizer) - 1)) / 8
        )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = [f"model.name={tmp_path}", "model.quantization=none", "rollout.max_tokens=40"]
    recipe = recipes.load("microcosm", words)
    check = endings_check(recipe, loading.load_policy(recipe, Place(CPU)), [[{"role": "user", "content": "?"}]] * 16)
    assert check.status == status
    assert ("lora.train_stop_tokens=true" in check.mend) == (status == FAIL)
    (said,) = re.findall(rf"the chance of {re.escape(stop)} (\S+)$", check.found)
    assert float(said) == pytest.approx(chance, abs=2e-3 if status == PASS else 1e-8)


@pytest.mark.parametrize(
    ("right", "status", "words"),
    [
        (40, PASS, ""),
        (36, PASS, ""),
        (28, PASS, "its taste is weak"),
        (20, FAIL, "no better than chance"),
        (12, FAIL, "it prefers bad answers"),
    ],
)
def test_only_a_judge_that_prefers_bad_answers_is_said_to(right, status, words):
    class Judge:
        def score(self, asked):
            return [float(i % 2 == (i // 2 >= right)) for i in range(len(asked))]

    check = checks_of.order_check(Judge(), PAIRS)
    assert (check.status, check.found) == (status, f"{right} of 40")
    assert words in check.mend
    assert bool(check.mend) == bool(words)
