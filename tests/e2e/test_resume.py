"""A run that is cut off goes on, and ends bit for bit as the uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir

WORDS = (
    "budget.steps=6",
    "budget.checkpoint_every=2",
    "evaluation.suite=none",
    "evaluation.heldout_prompts=0",
    "algorithm.updates_per_rollout=1",
)


def adapter_hash(path):
    return json.loads((path / "summary.json").read_text())["adapter_sha256"]


def started(path, *words):
    command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(path), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for_step(path, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = path / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached")


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "r"
    train("--run-dir", path, *WORDS)
    return path


def test_a_killed_run_resumes_bit_for_bit(train, uninterrupted, tmp_path):
    path = tmp_path / "r"
    process = started(path, *WORDS)
    wait_for_step(path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = train("--run-dir", path, "--resume")
    assert f"resuming the run {path}" in done.stdout
    assert adapter_hash(path) == adapter_hash(uninterrupted)
    resumed, whole = (files.read_lines(p / "metrics.jsonl") for p in (path, uninterrupted))
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6]
    untimed = [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in resumed]
    assert untimed == [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in whole]
    assert (path / "samples.jsonl").read_text() == (uninterrupted / "samples.jsonl").read_text()


@pytest.mark.slow
def test_an_interrupted_run_saves_exits_130_and_says_how_to_go_on(train, uninterrupted, tmp_path):
    path = tmp_path / "r"
    process = started(path, *WORDS)
    wait_for_step(path, 1, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python -m grlo_lite.train --run-dir {path} --resume" in printed
    steps = len(files.read_lines(path / "metrics.jsonl"))
    assert steps < 6
    assert RunDir(path).checkpoint_folders()[-1].name == f"step-{steps}"
    train("--resume", "--run-dir", path)
    assert adapter_hash(path) == adapter_hash(uninterrupted)
    assert json.loads((path / "summary.json").read_text())["recipe"] == "microcosm"


@pytest.mark.slow
def test_a_run_killed_while_it_measures_goes_on_from_its_last_step(train, tmp_path):
    path = tmp_path / "r"
    process = started(path, *WORDS[:2], "evaluation.limit=40", "evaluation.heldout_prompts=20")
    wait_for_step(path, 6, process)
    deadline = time.monotonic() + 30
    while not (path / "checkpoints" / "step-6").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (path / "summary.json").exists()
    train("--resume", "--run-dir", path, "budget.steps=6")
    assert len(files.read_lines(path / "metrics.jsonl")) == 6
    assert (path / "evaluation.json").exists()


def test_a_budget_of_hours_ends_a_run_in_order(train, tmp_path):
    path = tmp_path / "r"
    train("--run-dir", path, *WORDS, "budget.hours=0.000001")
    summary = json.loads((path / "summary.json").read_text())
    assert summary["stopped_because"] == "hours"
    assert summary["steps"] == 1
    assert (path / "adapter" / "adapter_model.safetensors").exists()


def test_a_resumed_run_keeps_its_recipe_and_its_prompts(train, uninterrupted, tmp_path):
    os.symlink(uninterrupted, tmp_path / "done")
    assert "is finished" in train("--resume", "--run-dir", tmp_path / "done", code=2).stderr
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "Tell me about the river."}\n')
    path = tmp_path / "r"
    process = started(path, *WORDS, f"prompts.source={prompts}")
    wait_for_step(path, 2, process)
    process.kill()
    process.wait()
    assert "keeps its recipe" in train("--resume", "--run-dir", path, "seed=2", code=2).stderr
    prompts.write_text('{"prompt": "Tell me about the garden."}\n')
    assert "prompts.source" in train("--resume", "--run-dir", path, code=2).stderr
