"""How long a model's answers are, by what it has said before. No torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir

ASSUMED = "answers taken to be half as long as they may become"


@dataclass(frozen=True)
class Lengths:
    """Answers that were heard: their average tokens, the share that was cut off, and the limit that did it; where none
    was, `limit` is how long the longest became.
    """

    tokens: float
    cut: float
    limit: float

    @property
    def rate(self) -> float:
        """The chance that a token ends an answer, taken to be the same everywhere: the estimate of greatest likelihood
        where some were cut off.
        """
        return (1 - self.cut) / max(self.tokens, 1.0)

    def mean(self, limit: int) -> float:
        """Tokens of an average answer under a limit: what was heard under the same one; under a longer one those that
        were cut off go on, under a shorter one as many are cut off as end at that rate.
        """
        if limit >= self.limit:
            return self.tokens + self.cut * _until(self.rate, limit - self.limit)
        return self.tokens * _until(self.rate, limit) / _until(self.rate, self.limit)

    def most(self, answers: float, limit: int) -> float:
        """Tokens of the longest of so many answers."""
        if limit <= self.limit or not self.cut:
            return min(limit, self.limit)
        going_on = max(answers * self.cut, 1.0)
        return min(limit, self.limit + (math.log(going_on) + 0.5772) / self.rate) if self.rate else limit


def _until(rate: float, limit: float) -> float:
    """The average of lengths that end at this rate, cut off at a limit."""
    return -math.expm1(-rate * limit) / rate if rate else limit


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
    limit = recipes.load(str(run.recipe), []).rollout.max_tokens
    found = {
        ("", arm): Lengths(step["completion_tokens_mean"], step["truncated_fraction"], limit)
        for arm, step in (("base", steps[0]), ("tuned", steps[-1]))
    }
    return found, "answers taken to be as long as at training's first step and at its last"


def _of(rows: Iterable[dict[str, Any]]) -> Lengths:
    said = [(row["tokens"], row["truncated"]) for row in rows]
    mean, cut = (sum(column) / len(said) for column in zip(*said, strict=True))
    return Lengths(mean, cut, max(tokens for tokens, _ in said))


def of(found: Heard, task: str, arm: str) -> Lengths | None:
    """What is known of an arm's answers to a task: those to this very task, else all of this arm's, else those of the
    base or of the tuned model; None where nothing is known.
    """
    like = "base" if arm.startswith("base") else "tuned"
    return next((found[key] for key in ((task, arm), ("", arm), ("", like)) if key in found), None)
