import pytest

from grlo_lite.monitoring import guards
from grlo_lite.recipe.schema import Guard, Guards
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
