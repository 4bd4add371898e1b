"""A run's time against its plan, by hand."""

from dataclasses import replace

import pytest

from grlo_lite.monitoring.pace import Pace, against_plan
from grlo_lite.planning import cards, planner
from grlo_lite.recipe import loading as recipes
from grlo_lite.wording import duration

PLAN = replace(
    planner.plan(recipes.load("microcosm", []), cards.laptop_card()),
    seconds={"rollout": 6.0, "reward": 1.0, "update": 3.0}, closing=60.0, steps=100, usd_per_hour=2.0, peak_bytes=0,
)  # fmt: skip


def line(step, elapsed, rollout=6.0):
    return {
        "step": step,
        "elapsed_seconds": elapsed,
        "rollout_seconds": rollout,
        "reward_seconds": 1.0,
        "update_seconds": 3.0,
    }


def test_time_left_is_what_the_steps_after_the_first_took():
    pace = Pace(100, PLAN)
    assert pace.left(line(1, 50.0, rollout=40.0)) is None  # the first step warms up
    assert pace.left(line(2, 61.0)) is None
    assert pace.left(line(3, 70.0)) == pytest.approx(97 * 10 + 60)
    assert pace.deviation() is None  # 1,060 seconds, as planned
    assert pace.left(line(4, 95.0, rollout=12.0)) == pytest.approx(96 * 15 + 60 * 8 / 6)


def test_a_run_far_from_its_plan_says_so_once_with_what_it_costs():
    pace = Pace(100, PLAN)
    for step, elapsed in ((1, 0.0), (2, 20.0)):
        pace.left(line(step, elapsed, rollout=12.0))
        assert pace.deviation() is None
    pace.left(line(3, 40.0, rollout=12.0))
    # 100 steps of 20 seconds and twice 60 for the end are 2,120 seconds, or 0.589 hours
    assert pace.deviation() == "planned 18 minutes, at this pace 35 minutes, $1.18"
    pace.left(line(4, 60.0, rollout=12.0))
    assert pace.deviation() is None


def test_a_resumed_run_counts_from_where_it_goes_on():
    pace = Pace(10, None)
    pace.left(line(7, 700.0))
    pace.left(line(8, 800.0))
    assert pace.left(line(9, 910.0)) == pytest.approx(105.0)
    assert pace.deviation() is None


def test_the_summary_holds_plan_and_truth():
    lines = [line(1, 0.0, rollout=99.0), line(2, 1.0, rollout=5.0), line(3, 2.0, rollout=7.0)]
    assert against_plan(lines, None) == {}
    assert against_plan(lines, PLAN)["rollout_seconds"] == {"planned": 6.0, "measured": 6.0}
    assert "peak_vram_gib" not in against_plan(lines, PLAN)
    on_a_card = [line | {"peak_vram_gib": peak} for line, peak in zip(lines, (7.0, 9.0, 8.0), strict=True)]
    assert against_plan(on_a_card, PLAN)["peak_vram_gib"] == {"planned": 0.0, "measured": 9.0}


@pytest.mark.parametrize(
    ("seconds", "said"), [(42.4, "42 seconds"), (130.0, "2 minutes"), (3599.0, "60 minutes"), (5400.0, "1.5 hours")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said
