"""Unsloth's code for a GPU, run on a CPU: what its patches, its trainers and its repair of tokenizers make of ours."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unsloth")
    script = Path(__file__).with_name("unsloth_on_cpu.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_its_trainers_are_generated_for_the_trl_that_is_installed(found):
    assert {"UnslothGRPOTrainer.py", "UnslothRLOOTrainer.py"} <= set(found["trainers"])
    assert found["module"] == "UnslothGRPOTrainer"


@pytest.mark.parametrize("recipe", ["dapo", "dr_grpo", "kl", "rloo"])
def test_its_trainers_use_the_arguments_that_trls_would(found, recipe):
    """For an explicit dapo it would mask what is truncated and clip at 1.28; for dr_grpo it would stop scaling."""
    stock, patched = found["stock"][recipe], found["patched"][recipe]
    assert len(stock) >= 20
    assert {key: (stock[key], patched.get(key)) for key in stock if stock[key] != patched.get(key)} == {}


def test_what_is_asked_for_is_what_is_used(found):
    dapo, scaled = found["patched"]["dapo"], found["patched"]["dr_grpo"]
    assert (dapo["mask_truncated_completions"], dapo["epsilon_high"]) == ("False", "0.2")
    assert scaled["scale_rewards"] == "group"


def test_a_qwen3_judge_scores_the_same_before_and_after_its_patches(found):
    alone, beside = found["scores"]
    assert alone == pytest.approx(beside, abs=1e-4)
    assert len(set(alone)) == 3


def test_a_twin_that_is_made_after_its_patches_is_still_the_policy(found):
    """Both kinds, of a Qwen3 whose rotary class it has replaced for the whole process."""
    assert found["patched_rotary"] == "unsloth"
    assert found["twins"]["rotary"] == "transformers"
    assert max(found["twins"]["lean"], found["twins"]["stock"]) < 1e-5


def test_it_leaves_every_shipped_tokenizer_as_it_is(found):
    for name, pads in found["pads"].items():
        assert pads == {"before": "<|pad|>", "after": "<|pad|>", "size": 744}, name
    token, configured, number = found["policy_pad"]
    assert (token, configured) == ("<|pad|>", number)


def test_its_mask_keeps_the_token_that_ends_an_answer(found):
    """It makes the completions' mask again from what is not the pad: a stop token that pads would teach nothing."""
    assert found["ids"][-3] in found["stops"]
    assert found["mask"][-3:] == [1, 0, 0]
    assert all(found["mask"][:-2])


def test_checkpointing_is_on_again_after_an_answer(found):
    """Its answers turn it off; `.train()` alone, as RLOO would leave it, does not turn it on."""
    assert found["armed"] == [True, False, True]


def test_its_loss_is_corrected_for_what_sampled_by_the_settings_that_ours_makes(found):
    assert found["losses"] == pytest.approx([1.0, 2.0, 3.0])
    assert {
        'trainer, "vllm_importance_sampling_correction',
        'trainer.args, "vllm_importance_sampling_clip_max',
        'trainer.args, "vllm_importance_sampling_clip_min',
        'trainer.args, "vllm_importance_sampling_mode',
    } <= set(found["loss_reads"])
