import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from grlo_lite.errors import BadInput
from grlo_lite.models import loading as models
from grlo_lite.models import names, reward_model, scoring_budget
from grlo_lite.models.backends import Place
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Judge

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_labels": 1,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForSequenceClassification),
    "qwen2": (Qwen2Config, Qwen2ForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
    "gemma2": (Gemma2Config, Gemma2ForSequenceClassification),
}


def conversations(count):
    rng = np.random.default_rng(0)
    said = [
        " ".join(rng.choice(["river", "is", "wide", "First,", "um", "so"], size=rng.integers(1, 60)))
        for _ in range(count)
    ]
    return [
        [{"role": "user", "content": f"Tell me {i}."}, {"role": "assistant", "content": s}] for i, s in enumerate(said)
    ]


def one_by_one(model, ids):
    """A plain fp32 forward of one unpadded sequence through the model's own head, read at its last token."""
    hidden = model.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0]
    return model.score(hidden[:, -1])[0, 0].item()


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(names.REWARD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_scores_equal_a_plain_one_by_one_reference(kind, pad, side, budget, tokenizer):
    config, build = KINDS[kind]
    torch.manual_seed(0)
    tokenizer.pad_token, tokenizer.padding_side = pad, side
    model = build(config(**SHAPE, pad_token_id=tokenizer.pad_token_id)).eval()
    scorer = reward_model.RewardModel(model, tokenizer, max_tokens=512, tokens_per_batch=budget)
    asked = conversations(64)
    with torch.inference_mode():
        expected = [one_by_one(model, scorer.token_ids(c)) for c in asked]
    assert np.ptp(expected) > 0.01
    assert scorer.score(asked) == pytest.approx(expected, abs=1e-4)


def test_the_end_of_a_long_answer_is_kept_and_the_left_of_the_prompt_cut(tokenizer):
    scorer = reward_model.RewardModel(_tiny(), tokenizer, max_tokens=12, tokens_per_batch=100)
    long = [{"role": "user", "content": "first " * 40}, {"role": "assistant", "content": "the very last"}]
    rows = []
    plain = scorer._scores_of
    scorer._scores_of = lambda batch: rows.extend(batch) or plain(batch)
    scorer.score([long, [{"role": "user", "content": "a"}]])
    assert scorer.cut == 1
    assert sorted(map(len, rows))[-1] == 12
    assert tokenizer.decode(rows[-1]).endswith("the very last<|im_end|>\n")
    assert tokenizer.decode(rows[0]).endswith("a<|im_end|>\n")


@pytest.mark.parametrize("in_template", [True, False])
def test_exactly_one_bos(tokenizer, in_template):
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|im_start|>"  # any special token will do to stand for a BOS
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = (
        "<|im_start|>" if in_template else ""
    ) + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    scorer = reward_model.RewardModel(_tiny(), tokenizer, max_tokens=10, tokens_per_batch=100)
    for words in ("river", "river " * 30):
        ids = reward_model.cut_from_left(scorer.token_ids([{"role": "user", "content": words}]), 10, scorer.bos)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) <= 10


def test_identical_texts_are_scored_once_and_order_is_kept(tokenizer):
    scorer = reward_model.RewardModel(_tiny(), tokenizer, max_tokens=512, tokens_per_batch=10_000)
    rows = []
    plain = scorer._scores_of
    scorer._scores_of = lambda batch: rows.extend(batch) or plain(batch)
    a, b = conversations(2)
    scores = scorer.score([b, a, b, b])
    assert len(rows) == 2
    assert scores[0] == scores[2] == scores[3] != scores[1]


def test_no_forward_exceeds_the_budget_trains_or_caches(tokenizer):
    """TRL's own path gives the whole batch to one forward, with a cache; memory then grows with the batch."""
    model, seen = _tiny().train(), []
    scorer = reward_model.RewardModel(model, tokenizer, max_tokens=512, tokens_per_batch=400)
    assert not model.training
    model.base_model.register_forward_pre_hook(
        lambda _, args, given: seen.append((given["input_ids"].shape, given["use_cache"], torch.is_grad_enabled())),
        with_kwargs=True,
    )
    scorer.score(conversations(200))
    assert len(seen) > 10
    assert all(shape.numel() <= 400 and not caches and not gradients for shape, caches, gradients in seen)


def test_a_score_that_is_not_finite_stops_and_names_the_prompt(tokenizer):
    model = _tiny()
    scorer = reward_model.RewardModel(model, tokenizer, max_tokens=512, tokens_per_batch=100)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    with pytest.raises(reward_model.RewardError, match=r"nan for the prompt 'Tell me 0\.'"):
        scorer.score(conversations(1))


def test_batches_stay_under_the_budget_of_padded_tokens():
    rows = [[0] * n for n in (1, 2, 3, 3, 9, 30)]
    batches = scoring_budget.batches_under_budget(rows, len, 10)
    assert [[len(r) for r in b] for b in batches] == [[1, 2, 3], [3], [9], [30]]


def test_models_without_a_one_logit_head_are_refused(tmp_path, tokenizer):
    config = Qwen3Config(**{**SHAPE, "num_labels": 2})
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    for path, told in [
        (tmp_path / "two", "with 2 labels"),
        (names.POLICY, "Qwen3ForCausalLM"),
        (tmp_path, "cannot be loaded"),
    ]:
        with pytest.raises(BadInput, match=told):
            reward_model.load(Judge(name=str(path)), torch.device("cpu"), 512, 1000)


def test_the_microcosms_reward_model_is_nf4_with_a_float_head():
    from bitsandbytes.nn import Linear4bit

    model = reward_model.load(Judge(name="microcosm"), torch.device("cpu"), 512, 1000).model
    quantized = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(quantized) == 7 * model.config.num_hidden_layers
    assert {m.weight.quant_type for m in quantized} == {"nf4"}
    assert not any(m.support_avx512bf16_for_cpu for m in quantized)
    assert model.score.weight.dtype == torch.float32
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def _tiny():
    torch.manual_seed(0)
    return Qwen3ForSequenceClassification(Qwen3Config(**SHAPE)).eval()


def test_a_reward_model_that_loading_the_policy_changes_is_refused(monkeypatch):
    """As where the policy's loader patches a class that both models share."""
    values = recipes.load("microcosm", [])
    where = Place(torch.device("cpu"))
    _, [(_, _, judge)] = models.load_policy_and_judges(values, where)
    scores = reward_model.fixed_scores(judge)
    assert len({round(score, 3) for score in scores}) == 3
    reward_model.require_unchanged("j", scores, [score + 0.009 for score in scores])
    plain = models.load_policy

    def patching(*words):
        forward = Qwen3RMSNorm.forward
        monkeypatch.setattr(Qwen3RMSNorm, "forward", lambda norm, hidden: 1.1 * forward(norm, hidden))
        return plain(*words)

    monkeypatch.setattr(models, "load_policy", patching)
    with pytest.raises(BadInput, match="gives other scores once the policy is loaded"):
        models.load_policy_and_judges(values, where)
