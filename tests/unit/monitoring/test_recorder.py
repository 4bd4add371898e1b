"""The line of metrics that a step leaves."""

from types import SimpleNamespace

from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import layout


def test_where_the_trainer_logs_no_entropy_it_is_that_of_the_engine(tmp_path):
    """As Unsloth's compiled GRPO: the mean surprise of what was sampled stands for it."""
    run = layout.create(tmp_path / "r", "microcosm", "")
    recipe = recipes.load("microcosm", ["algorithm.updates_per_rollout=2"])
    recorder = Recorder(run, recipe, lambda: 0.0, lambda step: {}, Halvings(run), Pace(1, None))
    model = SimpleNamespace(generate=SimpleNamespace(sampled_entropy=1.25))
    state = SimpleNamespace(global_step=1)  # the first update of two
    for logs in ({"loss": 0.5}, {"loss": 0.5, "entropy": 0.9}):
        recorder.on_log(None, state, None, logs=logs, optimizer=None, model=model)
    assert [log["entropy"] for log in recorder.logs] == [1.25, 0.9]
