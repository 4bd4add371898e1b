"""How long a model's answers are, by what it has said before. No torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir

ASSUMED = "answers taken to be half as long as they may become"


@dataclass(frozen=True)
class Lengths:
    """Answers that were heard: how many of them ended by themselves, the tokens of all, and of the longest one, which
    is infinite where one was cut off.
    """

    ended: float
    tokens: float
    longest: float = math.inf

    @property
    def rate(self) -> float:
        """The chance that an answer ends with a token, taken to be the same everywhere: the estimate of greatest
        likelihood where some were cut off.
        """
        return self.ended / max(self.tokens, 1.0)

    def mean(self, limit: int) -> float:
        """Tokens of an average answer that is cut off at a limit."""
        return -math.expm1(-self.rate * limit) / self.rate if self.rate else float(limit)

    def most(self, answers: float, limit: int) -> float:
        """Tokens of the longest of so many answers."""
        if not self.rate:
            return float(limit)
        return min(limit, self.longest, (math.log(max(answers, 1.0)) + 0.5772) / self.rate)


Heard = dict[tuple[str, str], Lengths]  # by task and arm; of all tasks of an arm under the name ""


def heard(run: RunDir) -> tuple[Heard, str]:
    """How long each arm's answers were in the newest evaluation of a run, or else in its training, at the first step
    and at the last; and in which words that is said. Nothing is known of an adapter that no run is at hand of.
    """
    rows = [row for row in files.read_lines(run.answers) if "tokens" in row]
    if rows:
        keys = {("", row["arm"]) for row in rows} | {(row["task"], row["arm"]) for row in rows}
        found = {key: _of(row for row in rows if row["arm"] == key[1] and key[0] in ("", row["task"])) for key in keys}
        return found, f"answers taken to be as long as those in {run.answers.name}"
    steps = files.read_lines(run.metrics)
    if not steps:
        return {}, ASSUMED
    found = {("", arm): _of_step(step) for arm, step in (("base", steps[0]), ("tuned", steps[-1]))}
    return found, "answers taken to be as long as at training's first step and at its last"


def of(found: Heard, task: str, arm: str) -> Lengths | None:
    """What is known of an arm's answers to a task: those to this very task, else all of this arm's, else those of the
    base or of the tuned model; None where nothing is known.
    """
    like = "base" if arm.startswith("base") else "tuned"
    return next((found[key] for key in ((task, arm), ("", arm), ("", like)) if key in found), None)


def _of(rows: Iterable[dict[str, Any]]) -> Lengths:
    said = [(row["tokens"], row["truncated"]) for row in rows]
    cut = sum(truncated for _, truncated in said)
    longest = math.inf if cut else max(tokens for tokens, _ in said)
    return Lengths(len(said) - cut, sum(tokens for tokens, _ in said), longest)


def _of_step(step: dict[str, Any]) -> Lengths:
    return Lengths(1 - step["truncated_fraction"], step["completion_tokens_mean"])
