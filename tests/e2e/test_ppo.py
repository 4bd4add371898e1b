"""Runs by PPO: what they say, and what they survive."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from grlo_lite import train
from grlo_lite.cli import run_command
from grlo_lite.models.critic import OPTIMIZER, WEIGHTS, Critic
from grlo_lite.rundir import files

PPO = (
    "microcosm",
    "algorithm.name=ppo",
    "algorithm.updates_per_rollout=2",
    "rollout.batch=16",
    "rollout.max_tokens=24",
    "prompts.decontaminate=false",
)
WORDS = (*PPO, "budget.steps=4", "budget.checkpoint_every=1", "evaluation.suite=none", "evaluation.heldout_prompts=0")


def in_process(*words):
    return run_command(lambda: train.main([str(word) for word in words]))


def lines(path):
    return files.read_lines(path / "metrics.jsonl")


def adapter_hash(path):
    return json.loads((path / "summary.json").read_text())["adapter_sha256"]


def critic_of(path, step=4):
    folder = path / "checkpoints" / f"step-{step}"
    return load_file(folder / WEIGHTS), torch.load(folder / OPTIMIZER, weights_only=True)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "r"
    assert in_process("--run-dir", path, *WORDS, "algorithm.critic.save=true") == 0
    return path


def test_a_run_tells_what_its_critic_is_worth_and_keeps_it_apart(whole):
    for line in lines(whole):
        assert {"value_loss", "value_mean", "explained_variance", "advantage_std", "clip_fraction"} <= set(line)
    assert lines(whole)[0]["explained_variance"] == pytest.approx(0, abs=1e-6)  # at first it only knows the mean
    assert lines(whole)[0]["value_mean"] == pytest.approx(lines(whole)[0]["reward_mean"], abs=1e-5)
    weights = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 56
    assert not [name for name in weights if "critic" in name]
    assert not [file for file in (whole / "adapter").rglob("*") if "critic" in file.name]
    critic = load_file(whole / "critic" / WEIGHTS)
    assert len(critic) == 58
    assert same(critic, critic_of(whole)[0])
    recipe = json.loads((whole / "environment.json").read_text())
    assert recipe["backend"] == "transformers"


def killed_and_resumed(path, words, moments, kills):
    command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(path)]
    for _ in range(kills):
        more = ["--resume"] if path.exists() else words
        done = len((path / "metrics.jsonl").read_text().splitlines()) if (path / "metrics.jsonl").exists() else 0
        process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = done + moments.randint(1, 2)
        while process.poll() is None and (
            not (path / "metrics.jsonl").exists() or (path / "metrics.jsonl").read_bytes().count(b"\n") < wanted
        ):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (path / "summary.json").exists():
            return
    assert in_process("--run-dir", path, "--resume") == 0


def ended_alike(path, whole):
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]
    assert adapter_hash(path) == adapter_hash(whole)
    (weights, optimizer), (its_weights, its_optimizer) = critic_of(path), critic_of(whole)
    assert same(weights, its_weights)
    assert same(optimizer, its_optimizer)


def test_a_run_that_is_resumed_ends_on_the_same_bytes_critic_and_all(whole, tmp_path):
    path = tmp_path / "r"
    assert in_process("--run-dir", path, *WORDS, "budget.hours=0.000001") == 0  # one step
    assert len(lines(path)) == 1
    (path / "summary.json").unlink()
    assert in_process("--run-dir", path, "--resume", "budget.hours=1") == 0
    ended_alike(path, whole)


@pytest.mark.slow
def test_ten_runs_killed_at_random_moments_do(whole, tmp_path):
    for number in range(10):
        killed_and_resumed(tmp_path / str(number), WORDS, random.Random(number + 1), 2)
        ended_alike(tmp_path / str(number), whole)


def test_out_of_memory_in_the_critics_pass_halves_its_rows_and_makes_the_step_again(whole, tmp_path, monkeypatch):
    values, refused = Critic.values, []

    def limited(self, rows):
        if torch.is_grad_enabled() and self.rollouts == 2 and len(rows["completion_ids"]) > 4:
            refused.append(self.rollouts)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return values(self, rows)

    monkeypatch.setattr(Critic, "values", limited)
    path = tmp_path / "r"
    assert in_process("--run-dir", path, *WORDS) == 0
    assert refused == [2]
    made = json.loads((path / "summary.json").read_text())["out_of_memory"]
    assert [(row["phase"], row["was"], row["now"]) for row in made] == [("update", 8, 4)]
    assert [line["micro_batch"] for line in lines(path)] == [8, 8, 4, 4]
    assert {line["effective_batch"] for line in lines(path)} == {8}
    for mine, theirs in zip(lines(path), lines(whole), strict=True):  # up to the order of sums
        assert mine["reward_mean"] == pytest.approx(theirs["reward_mean"], abs=1e-3)
        assert mine["value_loss"] == pytest.approx(theirs["value_loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_share_one_critic(whole, tmp_path):
    path = tmp_path / "r"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    words = [*WORDS, "budget.steps=2"]
    command = [*launch, "grlo_lite.train", "--run-dir", str(path), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["rollouts"] for line in lines(path)] == [16, 32]
    for line in lines(path):  # the same batch, mean and loss in both
        assert {"value_loss", "explained_variance"} <= set(line)
    assert lines(path)[0]["value_mean"] == pytest.approx(lines(path)[0]["reward_mean"], abs=1e-5)
    assert (path / "checkpoints" / "step-2" / WEIGHTS).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("updates", "bar"), [(1, 0.38), (4, 0.55)])
def test_it_learns_and_its_critic_explains(train, tmp_path, updates, bar):
    """One of the five seeds of docs/ppo.md."""
    path = tmp_path / "r"
    train("microcosm", "--run-dir", path, "algorithm.name=ppo", f"algorithm.updates_per_rollout={updates}")
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert evaluation["average"]["difference"] >= bar
    assert all(task["difference"] > 0 for task in evaluation["tasks"])
    assert lines(path)[-1]["explained_variance"] >= 0.3  # over the last ten steps


@pytest.mark.slow
def test_shuffled_rewards_teach_ppo_nothing(train, tmp_path):
    path = tmp_path / "r"
    words = ("algorithm.name=ppo", "algorithm.updates_per_rollout=4", "reward.shuffle=true")
    train("microcosm", "--run-dir", path, *words)
    average = json.loads((path / "evaluation.json").read_text())["average"]
    assert abs(average["difference"]) <= 0.05
