"""A run whose rollouts come from the kit's own engine, with its dense copy of the weights."""

import json
import shutil
from importlib.util import find_spec

import pytest

from grlo_lite.rundir import files


@pytest.mark.slow
def test_the_engine_without_a_copy_learns(train, tmp_path):
    path = tmp_path / "r"
    words = ("budget.steps=24", "evaluation.limit=60", "evaluation.heldout_prompts=0")
    train("--run-dir", path, "rollout.engine=compact", *words)
    assert json.loads((path / "evaluation.json").read_text())["average"]["difference"] >= 0.2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_policy_that_unsloth_trains_and_the_twin_decodes_learns(train, tmp_path, algorithm):
    words = ("backend=unsloth", "rollout.engine=folded", f"algorithm.name={algorithm}", "evaluation.limit=100")
    words = (*words, "budget.steps=24")
    train("--run-dir", tmp_path / "r", *words, "evaluation.heldout_prompts=0", cwd=tmp_path)
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["average"]["difference"] >= 0.25
    assert json.loads((tmp_path / "r" / "environment.json").read_text())["backend"] == "unsloth"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("rollout.engine=folded", "rollout.rows_at_once=12"),
        ("lora.train_stop_tokens=true",),
        pytest.param(
            ("backend=unsloth", "rollout.engine=folded"),
            marks=pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed"),
        ),
        pytest.param(
            ("backend=unsloth", "rollout.engine=folded", "algorithm.name=rloo"),
            marks=pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed"),
        ),
    ],
    ids=["transformers", "stop tokens' rows", "unsloth", "unsloth rloo"],
)
def test_a_run_that_lost_its_end_resumes_bit_for_bit(train, tmp_path, words):
    words = (*words, "budget.steps=2", "budget.checkpoint_every=1", "evaluation.suite=none")
    train("--run-dir", tmp_path / "whole", *words, "evaluation.heldout_prompts=0", cwd=tmp_path)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-2")
    shutil.rmtree(tmp_path / "cut" / "adapter")
    train("--run-dir", tmp_path / "cut", "--resume", cwd=tmp_path)
    hashes = [json.loads((tmp_path / name / "summary.json").read_text())["adapter_sha256"] for name in ("whole", "cut")]
    assert hashes[0] == hashes[1]
    lines = files.read_lines(tmp_path / "cut" / "metrics.jsonl")
    assert len(lines) == 2
    assert all(line["entropy"] > 0 for line in lines)


def test_vllm_beside_a_4_bit_policy_is_refused_before_anything_is_loaded(train, tmp_path):
    done = train("--run-dir", tmp_path / "r", "rollout.engine=fast_inference", "backend=transformers", code=2)
    assert "merge the adapter into vLLM's and the policy's 4-bit weights and back" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()
