import json

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from grlo_lite import doctor
from grlo_lite.checks import four_bits, machine
from grlo_lite.checks import reward_model as checks_of
from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS
from grlo_lite.models import reward_model
from grlo_lite.models.names import REWARD
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Judge

PAIRS = checks_of.clear_pairs("Skywork/Skywork-Reward-V2-Qwen3-4B")
CPU = torch.device("cpu")
LLAMA_TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}<|eot_id|>{% endfor %}"
)


@pytest.fixture
def scorer():
    return reward_model.load(Judge(name="microcosm"), CPU, 512, 8192)


@pytest.fixture(scope="module")
def pairs():
    return checks_of.clear_pairs("microcosm")


def failed(checks):
    return [check.name for check in checks if check.status == FAIL]


def test_a_healthy_reward_model_raises_no_alarm(scorer, pairs):
    checks = checks_of.reward_checks(scorer, pairs)
    assert failed(checks) == []
    assert [c.status for c in checks].count(PASS) == 4
    assert [c.name for c in checks if c.status == NOT_APPLICABLE] == ["one BOS"]


def test_a_quantized_head_is_found(scorer, pairs):
    scorer.model.score = Linear4bit(128, 1, bias=False, quant_type="nf4")
    scorer.model.score.weight.data = torch.randn(1, 128)
    scorer.model.score.to("cpu")
    assert checks_of.head_check(scorer).status == FAIL
    assert "Linear4bit" in checks_of.head_check(scorer).found


def test_a_head_in_bf16_is_found(scorer):
    scorer.model.score.bfloat16()
    assert "bfloat16" in checks_of.head_check(scorer).found
    assert checks_of.head_check(scorer).status == FAIL


def test_a_doubled_bos_is_found_and_a_single_one_passes(scorer, pairs):
    scorer.tokenizer.bos_token = "<|endoftext|>"
    bos, plain = scorer.tokenizer.bos_token_id, scorer.token_ids
    for ahead, status in ([bos], PASS), ([bos, bos], FAIL):
        scorer.token_ids = lambda conversation, ahead=ahead: ahead + plain(conversation)
        assert checks_of.bos_check(scorer, pairs).status == status


def test_reading_the_pads_score_is_found(scorer, pairs):
    def at_the_last_position(rows):
        ids = torch.tensor([row + (0,) * (len(rows[-1]) - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (len(rows[-1]) - len(row)) for row in rows])
        hidden = scorer.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        return scorer.model.score(hidden[:, -1].float())[:, 0].tolist()

    scorer._scores_of = at_the_last_position
    assert failed(checks_of.reward_checks(scorer, pairs))[0] == "pooling under padding"


def test_a_two_logit_model_is_found(tmp_path, scorer):
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen3ForSequenceClassification(Qwen3Config(vocab_size=800, num_key_value_heads=1, num_labels=2, **shape))
    model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    checks = doctor.diagnosis(
        recipes.load("microcosm", [f"reward.name={tmp_path}"]), after_policy=False, prompt_count=0
    )
    assert failed(checks) == ["one logit"]
    assert "with 2 labels" in checks[0].found


def test_a_swapped_template_is_found(scorer):
    scorer.tokenizer.chat_template = LLAMA_TEMPLATE
    check = checks_of.template_check(scorer.tokenizer)
    assert check.status == FAIL
    assert "<|eot_id|>" in check.found


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "loses or reorders"),
        ("{% for m in messages %}{{ m['content'] }} {% endfor %}", "nothing stands between"),
    ],
)
def test_a_template_that_mangles_a_conversation_is_found(template, told):
    tokenizer = AutoTokenizer.from_pretrained(REWARD)
    tokenizer.chat_template = template
    assert told in checks_of.template_check(tokenizer).found


def test_a_judge_that_prefers_bad_answers_is_found(scorer, pairs):
    scorer.model.score.weight.data.neg_()
    assert failed(checks_of.reward_checks(scorer, pairs)) == ["order of clear pairs"]


def test_scores_that_the_policy_changed_are_found():
    before = (np.array([1.0, 2.0]), np.array([-1.0, 0.0]))
    assert checks_of.unpatched_check(before, before).status == PASS
    assert checks_of.unpatched_check(before, (np.array([1.5, 2.0]), before[1])).status == FAIL
    assert checks_of.unpatched_check(None, before).status == NOT_APPLICABLE


def test_golden_scores_within_four_bits_of_the_card():
    name = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"

    class Scorer:
        def __init__(self, *scores):
            self.scores = list(scores)

        def score(self, asked):
            assert [c[0]["content"] for c in asked] == ["q", "q"]
            return self.scores

    def card(_):
        return "q", "a", "b"

    assert checks_of.golden_check(name, "nf4", Scorer(21.5, 5.0), card).status == PASS
    assert checks_of.golden_check(name, "none", Scorer(21.5, 5.0), card).status == FAIL
    assert checks_of.golden_check(name, "nf4", Scorer(12.0, 11.0), card).status == FAIL
    assert checks_of.golden_check(name, "nf4", Scorer(23.0, 3.6), lambda _: None).status == NOT_APPLICABLE
    assert checks_of.golden_check("another/model", "nf4", Scorer(), card).status == NOT_APPLICABLE


def test_the_example_of_a_model_card_is_read(shared_data):
    golden = json.loads((shared_data / "skywork_golden.json").read_text())
    texts = [golden["prompt"], *(response["text"] for response in golden["responses"])]
    names = ("prompt", "response1", "response2")
    lines = [f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in zip(names, texts, strict=True)]
    assert checks_of.example_of("# A card\n```python\n" + "\n".join(lines) + "\n```\n") == tuple(texts)
    assert checks_of.example_of("# A card without one") is None
    assert checks_of.GOLDEN_SCORES[golden["model"]] == tuple(r["score"] for r in golden["responses"])


def test_fidelity_by_hand():
    whole = np.array([1.0, 2, 3, 4])
    assert four_bits.flipped_pairs(whole, whole, 2) == 0
    assert four_bits.flipped_pairs(np.array([2.0, 1, 3, 4]), whole, 2) == 0.5
    assert four_bits.flipped_pairs(np.array([4.0, 3, 2, 1]), whole, 4) == 1
    healthy = four_bits.fidelity_check(2 * whole + 1, whole, 2)
    assert healthy.status == PASS
    assert "Spearman 1.000, Kendall 1.000, 0.0% of pairs flip, scale 2.00, shift +1.00" in healthy.found
    assert four_bits.fidelity_check(whole[::-1], whole, 2).status == FAIL


def test_versions_that_do_not_fit_are_named():
    installed = {"trl": "1.15.0", "torch": "2.13.0+cpu"}.__getitem__
    check = machine.versions_check(["trl<1.15,>=1.12", "torch<2.14,>=2.9", 'pytest>9; extra == "dev"'], installed)
    assert check.status == FAIL
    assert check.found == "trl is 1.15.0, wanted <1.15,>=1.12"


def test_the_clear_pairs_are_forty_and_all_different():
    assert len(PAIRS) == 40
    assert len({text for pair in PAIRS for text in pair}) == 120


def test_the_command(capsys):
    assert doctor.main(["microcosm", "--prompts", "8"]) == 0
    printed = capsys.readouterr().out
    assert "pass  4-bit against 16-bit      32 answers: Spearman 0.9" in printed
    assert printed.rstrip().endswith("16 checks, none failed")


def test_a_recipe_without_a_reward_model_is_told_what_earns_its_reward(tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, answer):\n    return [0.0] * len(completions)\n")
    found = {
        check.name: check
        for check in doctor.diagnosis(
            recipes.load("microcosm-rlvr", [f"reward.python={tmp_path}/mine.py:f"]), after_policy=False, prompt_count=8
        )
    }
    assert found["reward model"].status == NOT_APPLICABLE
    assert found[f"function {tmp_path}/mine.py:f"].found == "is loaded; asks for answer"
    assert found["grader microcosm-arithmetic"].status == PASS
    assert found["prompts with answers"].found == "all 936 can be graded"
    assert "answers that end" in found
    broken = recipes.load("microcosm-rlvr", [f"reward.python={tmp_path}/mine.py:g"])
    failed = [c for c in doctor.diagnosis(broken, after_policy=False, prompt_count=8) if c.status == FAIL]
    assert len(failed) == 1
    assert "has no function g" in failed[0].found
    chat = recipes.load("microcosm-rlvr", ["prompts.source=microcosm"])
    failed = [c for c in doctor.diagnosis(chat, after_policy=False, prompt_count=8) if c.name == "prompts with answers"]
    assert "cannot be graded" in failed[0].found
