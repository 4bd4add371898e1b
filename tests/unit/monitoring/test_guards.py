from types import SimpleNamespace

import numpy as np
import pytest

from grlo_lite.monitoring import guards
from grlo_lite.monitoring.metrics import why_no_signal
from grlo_lite.recipe.schema import Guard, Guards, Reward, Truncated
from grlo_lite.rewards.reward_function import RewardFunction
from grlo_lite.rundir import files, layout


class Control:
    should_save = should_training_stop = False


@pytest.fixture
def watched(tmp_path):
    """Feeds lines to a Watch one by one; returns it, its run and the control it was handed."""

    def feed(lines, **limits):
        run = layout.RunDir(tmp_path)
        control, now = Control(), {}
        watch = guards.Watch(
            Guards(**limits), run, lambda: (now["line"], [{"step": now["line"]["step"], "completion": "x"}])
        )
        for line in lines:
            now["line"] = line
            watch.on_log(None, None, control)
        return watch, run, control

    return feed


def lines(name, values):
    return [{"step": step, name: value} for step, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("name", "healthy", "sick", "words"),
    [
        ("reward_length_correlation", 0.5, 0.95, "hacked by length"),
        ("truncated_fraction", 0.2, 0.95, "does not end its turns"),
        ("repetition_fraction", 0.1, 0.6, "repeat"),
        ("distinct_fraction", 0.9, 0.1, "collapsed"),
        ("entropy", 0.5, 0.001, "explores nothing"),
        ("equal_groups_fraction", 0.2, 1.0, "no learning signal"),
        ("skipped_update", 0, 1, "nothing is learnt"),
    ],
)
def test_each_guard_speaks_once_in_plain_words_and_saves_samples(watched, capsys, name, healthy, sick, words):
    watch, run, control = watched(lines(name, [healthy] * 10))
    assert not run.guards.exists()
    watch, run, control = watched(lines(name, [healthy] * 5 + [sick] * 20))
    rows = files.read_lines(run.guards)
    assert [row["guard"] for row in rows] == [name]
    assert words in rows[0]["message"]
    assert rows[0]["samples"][0]["step"] == rows[0]["step"] <= 10
    assert capsys.readouterr().out.count("guard, step") == 1
    assert not control.should_training_stop
    assert watch.because is None


def test_a_part_of_the_reward_is_watched_by_itself_and_only_warns(watched):
    stop = {"reward_length_correlation": Guard(limit=0.8, action="stop")}
    _, run, control = watched(lines("reward_length_correlation/mine.py:f", [0.95] * 6), **stop)
    [row] = files.read_lines(run.guards)
    assert (row["guard"], row["action"]) == ("reward_length_correlation/mine.py:f", "warn")
    assert "reward_length_correlation/mine.py:f has been 0.95" in row["message"]
    assert not control.should_training_stop


def test_a_guard_can_stop_the_run_or_be_turned_off(watched):
    sick = lines("entropy", [0.0] * 5)
    watch, _, control = watched(sick, entropy=Guard(limit=None, action="stop"))
    assert not control.should_training_stop
    watch, _, control = watched(sick, entropy=Guard(limit=0.02, action="stop"))
    assert control.should_training_stop
    assert control.should_save
    assert watch.because == "entropy"


def test_what_was_spoken_before_a_resumption_is_not_spoken_again(watched, tmp_path):
    run = layout.RunDir(tmp_path)
    watched(lines("entropy", [0.0] * 5))
    files.append_lines(run.metrics, lines("entropy", [0.0] * 5))
    watched([{"step": 6, "entropy": 0.0}])
    assert len(files.read_lines(run.guards)) == 1


def test_the_first_step_without_a_signal_is_told_at_once_and_once_even_after_a_resumption(tmp_path, capsys):
    run, now, why = layout.RunDir(tmp_path), {}, iter([None, "because", "because"])
    watch = guards.Watch(Guards(), run, lambda: (now, []), lambda: next(why))
    for now in lines("equal_groups_fraction", [0.5, 1.0, 1.0]):  # noqa: B007
        watch.on_log(None, None, Control())
    (row,) = files.read_lines(run.guards)
    assert (row["step"], row["guard"], row["action"]) == (2, "no_signal", "warn")
    assert row["message"].endswith("this step teaches nothing: because")
    now = {"step": 4, "equal_groups_fraction": 1.0}
    resumed = guards.Watch(Guards(), run, lambda: (now, []), lambda: "because")
    resumed.on_log(None, None, Control())
    assert len(files.read_lines(run.guards)) == 1
    assert capsys.readouterr().out.count("teaches nothing") == 1


def batch(raw, truncated=False, texts="abcd", mode="ordered", clip=None):
    """Two groups of two completions by way of the reward function, and the reward section."""
    section = Reward(name="main", truncated=Truncated(mode=mode), clip=clip)
    judge = SimpleNamespace(score=lambda _: raw, cut=0)
    made = RewardFunction([("main", 1.0, judge)], [2], section, group_size=2, seed=0)
    ends = [7 if cut else 2 for cut in np.broadcast_to(truncated, 4)]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    return made.scored([[{"role": "user", "content": "?"}]] * 4, said, [[5, e] for e in ends], step=3), section


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (batch([1.0, 2.0, 3.0, 3.0]), None),
        (batch([1.0, 2.0, 3.0, 3.0], truncated=True), None),  # their order is kept
        (batch([1.0, 2.0, 3.0, 4.0], truncated=True, mode="penalty"), "mode=ordered, or raise"),
        (batch([1.0, 2.0, 3.0, 4.0], truncated=[0, 1, 0, 1], mode="mask"), "too few are left"),
        (batch([1.0, 1.0, 2.0, 2.0], texts="aabb"), "raise rollout.temperature"),
        (batch([9.0, 8.0, 7.0, 6.0], clip=5.0), "see reward.clip"),
        (batch([1.0, 1.0, 2.0, 2.0]), "scores them all the same"),
    ],
)
def test_a_step_without_a_signal_is_told_with_its_cause_and_its_mend(made, words):
    why = why_no_signal(*made)
    assert why is None if words is None else words in why


def evaluations(trained, heldout):
    return [{"reward_fixed_mean": t, "reward_heldout_mean": h} for t, h in zip(trained, heldout, strict=True)]


@pytest.mark.parametrize(
    ("trained", "heldout", "found"),
    [
        ([1, 2, 3, 4], [5, 4, 3, 2], True),
        ([1, 2, 3, 4], [5, 4, 4.5, 2], False),  # one recovery
        ([1, 2, 1, 4], [5, 4, 3, 2], False),  # the trained reward fell as well
        ([2, 3, 4], [4, 3, 2], False),  # two declines only
        ([0, 1, 2, 3, 4], [1, 5, 4, 3, 2], True),
    ],
)
def test_overoptimization_by_hand(trained, heldout, found):
    assert guards.is_overoptimizing(evaluations(trained, heldout), patience=3) is found
