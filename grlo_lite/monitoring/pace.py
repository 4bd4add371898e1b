"""How a run's time compares with its plan, and what is left of it, corrected by the steps that were made."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from grlo_lite.planning.cards import GIB
from grlo_lite.planning.planner import Plan
from grlo_lite.wording import duration

PHASES = ("rollout", "reward", "update")


FIRST_STEPS = 3  # after which the plan is corrected; the first of them warms up and is left out


WORTH_SAYING = 1.5  # times by which the run has to be slower or faster than planned


@dataclass
class Pace:
    """Says what is left of a run of `steps`, and once, when that is far from its plan (None where there is none)."""

    steps: int
    plan: Plan | None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def left(self, line: dict[str, Any]) -> float | None:
        """Takes in a step's metrics; the seconds left, closing measurement included, None before FIRST_STEPS."""
        self.lines.append(line)
        if len(self.lines) < FIRST_STEPS:
            return None
        return (self.steps - line["step"]) * self._a_step() + self._closing()

    def deviation(self) -> str | None:
        """A line for people, at FIRST_STEPS, where the run takes 1.5 times as long as planned or as little."""
        if self.plan is None or len(self.lines) != FIRST_STEPS:
            return None
        planned, now = 3600 * self.plan.hours, self.steps * self._a_step() + self._closing()
        if planned / WORTH_SAYING < now < planned * WORTH_SAYING:
            return None
        price = self.plan.usd_per_hour
        dollars = f", ${now / 3600 * price:.2f}" if price else ""
        return f"planned {duration(planned)}, at this pace {duration(now)}{dollars}"

    def _a_step(self) -> float:
        """Of the steps after the first, with what stood between them, such as checkpoints."""
        first, last = self.lines[0], self.lines[-1]
        return (last["elapsed_seconds"] - first["elapsed_seconds"]) / (last["step"] - first["step"])

    def _closing(self) -> float:
        """Planned, in the measure in which the rollouts of the steps after the first differ from the plan's."""
        if self.plan is None:
            return 0.0
        measured = fmean(line["rollout_seconds"] for line in self.lines[1:])
        return self.plan.closing * measured / self.plan.seconds["rollout"]


def against_plan(lines: list[dict[str, Any]], plan: Plan | None) -> dict[str, dict[str, float]]:
    """summary.json's `plan`: planned and measured seconds of an average step after the first, by phase, and on a GPU
    the peak.
    """
    if plan is None:
        return {}
    steps = lines[1:] or lines
    compared = {
        f"{phase}_seconds": {
            "planned": plan.seconds[phase],
            "measured": fmean(line[f"{phase}_seconds"] for line in steps),
        }
        for phase in PHASES
    }
    peaks = [line["peak_vram_gib"] for line in lines if "peak_vram_gib" in line]
    return compared | ({"peak_vram_gib": {"planned": plan.peak_bytes / GIB, "measured": max(peaks)}} if peaks else {})
