"""A run directory as it is found: what each file holds, and what is missing or damaged, in words."""

import json
import math
import os.path
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from grlo_lite.errors import BadInput
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Reward
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import cut

# What a directory that is a run has at least one of
SIGNS = ("recipe.yaml", "metrics.jsonl", "summary.json")


def record_of(path: Path) -> "Record":
    """The record of a run directory. Raises BadInput where it is none."""
    if not any(os.path.isfile(path / name) for name in SIGNS):  # Path.is_file() raises where a name is too long
        found = "has none of " + ", ".join(SIGNS) if os.path.isdir(path) else "is no folder"
        raise BadInput(
            f"{cut(str(path))} is no run directory: it {found}; name one, such as a folder in runs/ "
            "(grlo-lite runs lists them)"
        )
    return Record(path)


class Record:
    """The files of a run, each read when it is first wanted. What cannot be read is empty, and said in `troubles`."""

    def __init__(self, path: Path):
        self.run = RunDir(path)
        self.path = path
        self.troubles: dict[str, str] = {}  # by file: what is missing or wrong, and what that costs

    @property
    def where(self) -> Path:
        """The path as one would type it: below the folder that one is in without what leads there."""
        here = Path.cwd()
        return self.path.relative_to(here) if self.path.is_relative_to(here) else self.path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe as it was written, whatever version wrote it."""
        content: Any = {}
        try:
            content = yaml.safe_load(self.run.recipe.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError(f"it holds {type(content).__name__}")
            recipes.load(str(self.run.recipe), [])
        except FileNotFoundError:
            self._trouble(self.run.recipe, "is not there: what was run is known from other files alone")
            return {}
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            self._trouble(self.run.recipe, f"is damaged ({_line(error)}); restore it from a copy of the run")
            return {}
        except BadInput as error:
            said = f"is of another version of grlo_lite, and is shown as far as it is understood ({_line(error)})"
            self._trouble(self.run.recipe, said)
        return content

    def key(self, name: str, otherwise: Any = None) -> Any:
        """A key of the recipe by its name `section.key`."""
        value: Any = self.recipe
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return otherwise if value is None else value

    @cached_property
    def reward(self) -> str:
        """What earned a reward, by name."""
        try:
            return Reward.model_validate(self.recipe.get("reward")).said
        except ValidationError:
            return str(self.key("reward.name", "not known"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self._object(
            self.run.summary,
            f"is not there: the run is unfinished; go on: python -m grlo_lite.train --run-dir {self.where} --resume",
        )

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._object(self.run.environment, "is not there: device, versions and hashes are not known")

    @cached_property
    def contamination(self) -> dict[str, Any]:
        said = "is not there: whether prompts were checked against the benchmarks is not known"
        return self._object(self.run.contamination, said)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        how = f"python -m grlo_lite.evaluate {self.where}"
        return self._object(self.run.evaluation, f"is not there: base and tuned were not compared; {how} does that")

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The steps of metrics.jsonl, in order, with what is a finite number in them."""
        rows = self._rows(self.run.metrics, "is not there: no step has been written")
        numbered = [row for row in rows if _is_step(row.get("step"))]
        kept = [{key: value for key, value in row.items() if number(value) is not None} for row in numbered]
        if len(kept) < len(rows):
            self._trouble(self.run.metrics, f"has {len(rows) - len(kept)} lines without a step, which are left out")
        return sorted(kept, key=lambda row: row["step"])

    @cached_property
    def guards(self) -> list[dict[str, Any]]:
        """What the guards said; a run in which none spoke has no such file."""
        return self._rows(self.run.guards, None)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The whole rows of samples.jsonl, as text and numbers."""
        rows = self._rows(self.run.samples, "is not there: what was said during training was not kept")
        return [kept for row in rows if (kept := _sample(row))]

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        how = f"python -m grlo_lite.evaluate {self.where}"
        return self._rows(
            self.run.answers, f"is not there: the answers of base and tuned were not kept; {how} keeps them"
        )

    @property
    def missing(self) -> list[str]:
        """A sentence for each file that is missing or damaged."""
        for name in ("summary", "evaluation", "answers", "recipe", "environment", "contamination", "lines", "samples"):
            getattr(self, name)
        _ = self.guards
        return [f"{name} {said}." for name, said in self.troubles.items()]

    @property
    def name(self) -> str:
        """What the run's recipe was called, or its folder."""
        return str(self.summary.get("recipe") or self.environment.get("recipe") or self.path.resolve().name)

    @property
    def planned_steps(self) -> int | None:
        steps = self.key("budget.steps")
        return steps if _is_step(steps) else None

    @property
    def steps(self) -> int:
        """The steps that were made."""
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def seconds(self) -> float | None:
        """The run's wall time so far."""
        ended = number(self.summary.get("wall_seconds"))
        return self.lines[-1].get("elapsed_seconds") if ended is None and self.lines else ended

    @property
    def written(self) -> float:
        """When the newest of the run's files was written that tell of its steps, in seconds since 1970."""
        times = [0.0]
        for path in (self.run.metrics, self.run.summary, self.run.recipe):
            with suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    def quiet_seconds(self) -> float:
        """How long nothing of the kind has been written."""
        return max(0.0, time.time() - self.written)

    @property
    def state(self) -> str:
        """`finished`, `running` while it writes, `stopped` where it does not any more, `damaged` where its files
        cannot say.
        """
        if os.path.isfile(self.run.summary):
            return "finished" if self.summary else "damaged"
        return "running" if self.quiet_seconds() < max(120.0, 5 * self.step_seconds) else "stopped"

    @property
    def step_seconds(self) -> float:
        """The seconds of an average step since the first, 0 where that is not known."""
        timed = [line for line in self.lines if "elapsed_seconds" in line]
        if len(timed) < 2 or timed[-1]["step"] == timed[0]["step"]:
            return 0.0
        return (timed[-1]["elapsed_seconds"] - timed[0]["elapsed_seconds"]) / (timed[-1]["step"] - timed[0]["step"])

    def _trouble(self, path: Path, said: str) -> None:
        before = self.troubles.get(path.name)
        self.troubles[path.name] = said if before is None else f"{before}; it {said}"

    def _object(self, path: Path, absent: str) -> dict[str, Any]:
        text = self._text(path, absent)
        if text is None:
            return {}
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._trouble(path, f"is damaged ({_line(error)}); restore it from a copy of the run")
            return {}
        if not isinstance(content, dict):
            self._trouble(path, "is damaged (no JSON object); restore it from a copy of the run")
            return {}
        return content

    def _rows(self, path: Path, absent: str | None) -> list[dict[str, Any]]:
        """The lines of a file that are JSON objects; that others are left out is said."""
        text = self._text(path, absent)
        rows, torn = [], 0
        for line in (text or "").split("\n"):
            if not line.strip():
                continue
            row = _parsed(line)
            if row is None:
                torn += 1
            else:
                rows.append(row)
        if torn:
            self._trouble(path, f"has {torn} damaged {'line' if torn == 1 else 'lines'}, left out here")
        return rows

    def _text(self, path: Path, absent: str | None) -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if absent is not None:
                self._trouble(path, absent)
        except OSError as error:
            self._trouble(path, f"cannot be read ({error.strerror})")
        return None


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return value if real and math.isfinite(value) else None
    except OverflowError:  # an integer beyond a float's range
        return None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and number(value) is not None and value >= 0


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _sample(row: dict[str, Any]) -> dict[str, Any] | None:
    texts = {key: row.get(key) for key in ("prompt", "completion")}
    numbers = {key: number(row.get(key)) for key in ("step", "reward", "length")}
    if None in numbers.values() or not all(isinstance(text, str) for text in texts.values()):
        return None
    return {**texts, **numbers, "step": int(row["step"]), "cut": bool(row.get("truncated"))}


def _line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), 200)
