"""Hacking is caught while a run goes on: rigged judges on the real training path."""

import pytest
import torch
from peft import get_peft_model_state_dict

from grlo_lite.models import chat_template, names
from grlo_lite.models import loading as models
from grlo_lite.models.backends import Place
from grlo_lite.monitoring.guards import Watch
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.rewards.heldout import HeldoutJudge
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.rundir import files, layout
from grlo_lite.training import trainer

CPU = torch.device("cpu")


class Rigged:
    """A judge of the last message's text by any rule."""

    cut = 0

    def __init__(self, rule):
        self.rule = rule

    def score(self, conversations):
        return [float(self.rule(c[-1]["content"])) for c in conversations]


def watched_run(tmp_path, rule, *overrides, heldout=None):
    """A short run against a rigged judge; returns its directory, its guard and the policy it ends with."""
    values = recipes.load("microcosm", ["budget.checkpoint_every=100", "algorithm.updates_per_rollout=1", *overrides])
    made = models.load_policy(values, Place(CPU))
    rewards = RewardFunction(
        [("rigged", 1.0, Rigged(rule))], chat_template.stop_token_ids(made.tokenizer), values.reward, 8, 0
    )
    run = layout.create(tmp_path / "r", "microcosm", "")
    judge = heldout(made) if heldout else lambda step: {}
    pace = Pace(values.budget.steps, None)
    recorder = Recorder(run, values, lambda: 0.0, judge, Halvings(run), pace)
    watch = Watch(values.guards, run, recorder.latest)
    rows = prepared.prompt_rows(values).train
    materials = trainer.Materials(made, handed_on(rewards, recorder.take), rows, Place(CPU))
    trainer.composed_trainer(values, materials, run.partial, [recorder, watch], 32).train()
    return run, watch, made


def test_a_reward_that_likes_length_makes_the_length_guard_speak_within_ten_steps(tmp_path):
    run, watch, _ = watched_run(
        tmp_path, len, "budget.steps=10", "reward.truncated.mode=score", "reward.truncated.value=0",
        "guards.reward_length_correlation.action=stop",
    )  # fmt: skip
    spoken = files.read_lines(run.guards)
    length = next(row for row in spoken if row["guard"] == "reward_length_correlation")
    assert length["step"] <= 10
    assert "hacked by length" in length["message"]
    assert length["samples"][0]["completion"]
    assert watch.because == "reward_length_correlation"
    assert len(files.read_lines(run.metrics)) == length["step"]  # it stopped there


def test_a_reward_stuck_at_one_value_is_reported_as_no_learning_signal(tmp_path):
    run, watch, _ = watched_run(
        tmp_path, lambda text: 1.0, "budget.steps=6", "reward.truncated.mode=score", "reward.truncated.value=0"
    )
    spoken = {row["guard"]: row for row in files.read_lines(run.guards)}
    assert "no learning signal" in spoken["equal_groups_fraction"]["message"]
    assert watch.because is None


@pytest.mark.parametrize("action", ["warn", "stop", "keep_best"])
def test_a_heldout_decline_is_over_optimization(tmp_path, action):
    """The trained reward is rigged to rise at each evaluation, the held-out one to peak at step 2 and then fall."""
    seen = {}

    def heldout(made):
        evaluations = []

        def answers():
            evaluations.append(None)
            seen[len(evaluations)] = {k: v.clone() for k, v in get_peft_model_state_dict(made.model).items()}
            return [None]

        def falling(_):
            return [{1: 0.0, 2: 5.0}.get(len(evaluations), 5.0 - len(evaluations))]

        return HeldoutJudge(answers, lambda _: [float(len(evaluations))], falling, every=1)

    words = ("budget.steps=6", f"guards.on_overoptimization={action}", "reward.heldout.name=microcosm-heldout")
    run, watch, made = watched_run(tmp_path, len, *words, "guards.overoptimization_patience=2", heldout=heldout)
    row = next(r for r in files.read_lines(run.guards) if r["guard"] == "overoptimization")
    assert row["step"] == 4  # it fell at 3 and 4
    assert "the held-out judge liked step 2 best" in row["message"]
    assert len(files.read_lines(run.metrics)) == (6 if action == "warn" else 4)
    assert watch.because == (None if action == "warn" else "overoptimization")
    tuned = get_peft_model_state_dict(made.model)
    wanted = {"warn": 6, "stop": 4, "keep_best": 2}[action]
    assert all(torch.equal(tuned[name], seen[wanted][name]) for name in tuned)
    assert not all(torch.equal(tuned[name], seen[3][name]) for name in tuned)


def test_the_microcosm_ships_a_heldout_judge_that_is_another_model():
    trained, heldout = (folder / "model.safetensors" for folder in (names.REWARD, names.HELDOUT))
    assert heldout.read_bytes() != trained.read_bytes()


@pytest.mark.slow
def test_a_run_with_a_heldout_judge_and_two_trained_ones(train, tmp_path):
    path = tmp_path / "r"
    train(
        "--run-dir", path, "budget.steps=4", "evaluation.suite=none", "reward.heldout.every=2",
        "reward.heldout.name=microcosm-heldout", f"reward.models=[{{name: {names.HELDOUT}, weight: 0.5}}]",
    )  # fmt: skip
    lines = files.read_lines(path / "metrics.jsonl")
    assert ["reward_heldout_mean" in line for line in lines] == [False, True, False, True]
    both = [lines[0][f"score_mean/{name}"] for name in ("microcosm", str(names.HELDOUT))]
    assert lines[0]["score_mean"] == pytest.approx(both[0] + 0.5 * both[1])
