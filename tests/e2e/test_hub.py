"""Models of the Hub, as its cache on disk has them: which commit a run loads, records, and goes on with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from grlo_lite.models import chat_template, names

FIRST, LATER = "a" * 40, "b" * 40
SHIPPED = {"policy": names.POLICY, "reward": names.REWARD, "heldout": names.HELDOUT}


def move_main(cache, name, commit):
    """Makes `main` of somebody/name this commit, with other weights where it is the later one."""
    repository = cache / "hub" / f"models--somebody--{name}"
    shutil.copytree(SHIPPED[name], repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    if name == "policy":  # as a base model of Llama's: no chat template of its own
        (repository / "snapshots" / commit / "chat_template.jinja").unlink()
    if commit == LATER:
        weights = repository / "snapshots" / commit / "model.safetensors"
        save_file({key: torch.zeros_like(t) for key, t in load_file(weights).items()}, weights, {"format": "pt"})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in SHIPPED:
        move_main(tmp_path / "home", name, FIRST)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_resumed_run_uses_the_commits_it_began_with_though_main_has_moved_on(train, cache, tmp_path):
    run = tmp_path / "r"
    done = train(
        "model.name=somebody/policy", "reward.name=somebody/reward", "reward.heldout.name=somebody/heldout",
        "reward.heldout.every=1", "reward.heldout.prompts=2", "evaluation.heldout_prompts=2", "budget.steps=2",
        "budget.checkpoint_every=1", "evaluation.suite=none", "prompts.decontaminate=false", "prompts.limit=40",
        "--run-dir", run, "microcosm",
    )  # fmt: skip
    assert "somebody/policy has no chat template: prompts are written as plain text" in done.stdout
    assert (run / "adapter" / "chat_template.jinja").read_text() == chat_template.PLAIN_TEMPLATE
    before = json.loads((run / "summary.json").read_text())["adapter_sha256"]
    recorded = json.loads((run / "environment.json").read_text())
    assert recorded["model_commit"] == FIRST
    assert recorded["reward_model_commits"] == {"somebody/reward": FIRST, "somebody/heldout": FIRST}
    scores = (run / "metrics.jsonl").read_text().splitlines()[-1]

    for name in SHIPPED:
        move_main(cache, name, LATER)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-2")
    shutil.rmtree(run / "adapter")
    train("--run-dir", run, "--resume")
    assert json.loads((run / "summary.json").read_text())["adapter_sha256"] == before
    again = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["reward_heldout_mean"] == json.loads(scores)["reward_heldout_mean"]
    assert json.loads((run / "environment.json").read_text()) == recorded
