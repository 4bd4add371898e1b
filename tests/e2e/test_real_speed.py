"""benchmarks/real_speed.py: how it times the kit's side and keeps its answers from ending, on the microcosm."""

import pytest

from grlo_lite.generation import engines
from grlo_lite.recipe import loading as recipes

WORDS = ("rollout.batch=16", "rollout.group_size=4", "rollout.max_tokens=12", "optimizer.micro_batch=16",
         "algorithm.updates_per_rollout=1")  # fmt: skip


@pytest.fixture
def real_speed(benchmark_script, monkeypatch):
    """The module; what it puts into the engines for good is taken out again."""
    module = benchmark_script("real_speed")
    monkeypatch.setattr(engines, "Answers", engines.Answers)
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))
    monkeypatch.setattr(module, "planned", lambda path, probes: {"rollout": 1.0})
    return module


@pytest.mark.parametrize(("engine", "ends"), [("folded", False), ("compact", False), ("folded", True)])
def test_the_kits_answers_are_as_long_as_they_are_to_be(real_speed, engine, ends):
    recipe = recipes.load("microcosm", [*WORDS, f"rollout.engine={engine}", "evaluation.suite=none"])
    measured = real_speed.our_steps(recipe, ends)
    assert len(measured["seconds"]) == real_speed.STEPS
    assert min(measured["seconds"]) > 0
    if ends:  # evenly from 2 to 12 tokens, seven on average
        assert all(16 * 5 < tokens < 16 * 9 for tokens in measured["completion_tokens"])
        assert measured["plan"] == {"rollout": 1.0}
    else:
        assert measured["completion_tokens"] == [16 * 12] * real_speed.STEPS


def test_an_engine_that_is_not_the_kits_is_told(real_speed):
    recipe = recipes.load("microcosm", [*WORDS, "rollout.engine=generate", "evaluation.suite=none"])
    with pytest.raises(SystemExit, match=r"rollout\.engine=generate made 0 rollouts by the kit"):
        real_speed.our_steps(recipe, False)
