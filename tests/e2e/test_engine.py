"""A run whose rollouts come from the kit's own engine, with its dense copy of the weights."""

import json
import shutil

from grlo_lite.rundir import files


def test_the_folded_engine_learns(train, tmp_path):
    path = tmp_path / "r"
    words = ("budget.steps=32", "evaluation.limit=60", "evaluation.heldout_prompts=0")
    train("--run-dir", path, "rollout.engine=folded", *words)
    assert json.loads((path / "evaluation.json").read_text())["average"]["difference"] >= 0.2


def test_a_run_of_the_folded_engine_that_lost_its_end_resumes_bit_for_bit(train, tmp_path):
    words = ("rollout.engine=folded", "rollout.rows_at_once=12", "budget.steps=2", "budget.checkpoint_every=1")
    words = (*words, "evaluation.suite=none", "evaluation.heldout_prompts=0")
    train("--run-dir", tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-2")
    shutil.rmtree(tmp_path / "cut" / "adapter")
    train("--run-dir", tmp_path / "cut", "--resume")
    hashes = [json.loads((tmp_path / name / "summary.json").read_text())["adapter_sha256"] for name in ("whole", "cut")]
    assert hashes[0] == hashes[1]
    assert len(files.read_lines(tmp_path / "cut" / "metrics.jsonl")) == 2


def test_vllm_beside_a_4_bit_policy_is_refused_before_anything_is_loaded(train, tmp_path):
    done = train("--run-dir", tmp_path / "r", "rollout.engine=fast_inference", "backend=transformers", code=2)
    assert "merge the adapter into vLLM's and the policy's 4-bit weights and back" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()
