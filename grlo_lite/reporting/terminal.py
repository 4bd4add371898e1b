"""A run, and a table of runs, as lines of text for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from grlo_lite.reporting.html import seen
from grlo_lite.reporting.record import Record, number
from grlo_lite.reporting.sections import curves_of
from grlo_lite.wording import aligned, cut, duration, numbers

BARS = "▁▂▃▄▅▆▇█"
SPARK = 32  # characters of a curve
NARROWEST = 40  # columns


def screen(record: Record, columns: int) -> list[str]:
    """The run as it stands, in lines of at most `columns` characters: state, curves, guards, a sample, evaluation."""
    columns = max(columns, NARROWEST)
    lines = [f"{record.name}: {record.key('model.name', '?')}, by {record.reward}", *_progress(record, columns), ""]
    lines += _curves(record) or ["no step has been written yet"]
    lines += [f"guard, step {row.get('step')}: {row.get('message')}" for row in record.guards]
    if record.samples:
        newest = record.samples[-1]
        told = f"step {newest['step']}, reward {newest['reward']:+.2f}, {newest['length']} tokens"
        lines += ["", f"{told}: {newest['prompt'][:columns]}", f"  {newest['completion'][: 3 * columns]}"]
    if record.evaluation:
        lines += ["", *evaluated(record)]
    if record.state != "running" and record.troubles:  # before it ends, files are yet to come and a line is half there
        lines += ["", *(f"{name} {said}" for name, said in record.troubles.items())]
    return [cut(seen(line).replace("\r", "[U+000D]").replace("\n", " "), columns) for line in lines]


def evaluated(record: Record) -> list[str]:
    """The tasks of evaluation.json, a line each."""
    rows = [(row["task"], numbers(row)) for row in record.evaluation.get("tasks", [])]
    if isinstance(record.evaluation.get("average"), dict):
        rows.append(("average of tasks", numbers(record.evaluation["average"])))
    return (
        aligned([(name, f"{base} → {tuned}", *gain) for name, (base, tuned, *gain) in rows], left=(0,)) if rows else []
    )


def _progress(record: Record, columns: int) -> list[str]:
    done, of = record.steps, record.planned_steps
    state = record.state
    if state == "stopped" and record.lines:
        state = f"stopped, nothing written for {duration(record.quiet_seconds())}"
    told = f"{state}: step {done:,}" + (f" of {of:,}" if of else "")
    if record.seconds is not None:
        told += f", {duration(record.seconds)}"
    if record.state == "running" and of and record.step_seconds:
        told += f", about {duration((of - done) * record.step_seconds)} left"
    if not of:
        return [told]
    filled = round(min(1.0, done / of) * (columns - 2))
    return [told, f"[{'█' * filled}{'·' * (columns - 2 - filled)}]"]


def _curves(record: Record) -> list[str]:
    rows = []
    for title, _, of in curves_of(record.lines):
        for name, key in of.items():
            values = [line[key] for line in record.lines if key in line]
            if values:
                called = title if len(of) == 1 else f"{title}, {name}"
                rows.append((called, spark(values), f"{values[0]:.3g} →", f"{values[-1]:.3g}"))
    return aligned(rows, left=(0, 1)) if rows else []


def spark(values: Sequence[float], width: int = SPARK) -> str:
    """A curve in a line of characters: the mean of each of at most `width` stretches, lowest to highest."""
    count = min(width, len(values))
    edges = [n * len(values) // count for n in range(count + 1)]
    means = [fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low
    return "".join(BARS[round((mean - low) / span * 7)] if span > 0 else BARS[0] for mean in means)


@dataclass(frozen=True)
class Row:
    """A run in the table of runs. None where its files do not say."""

    run: str
    recipe: str
    state: str
    steps: int
    planned_steps: int | None
    reward: float | None
    gain: float | None  # of the average accuracy, tuned less base
    ci_low: float | None
    ci_high: float | None
    hours: float | None
    written: float  # when its metrics were last written, seconds since 1970


def row_of(record: Record) -> Row:
    """What the table says of a run."""
    average: Any = record.evaluation.get("average")
    average = average if isinstance(average, dict) else {}
    gain, low, high = (number(average.get(key)) for key in ("difference", "ci_low", "ci_high"))
    last = record.lines[-1] if record.lines else {}
    hours = None if record.seconds is None else record.seconds / 3600
    return Row(
        str(record.path), record.name, record.state, record.steps, record.planned_steps, last.get("reward_mean"),
        gain, low, high, hours, record.written,
    )  # fmt: skip


SORTED_BY = ("written", "run", "recipe", "state", "steps", "reward", "gain", "hours")


def in_order(rows: list[Row], by: str, reverse: bool) -> list[Row]:
    """The rows by a column: words from A, numbers from the largest, the other way round where `reverse`; what has no
    value last.
    """
    told = [row for row in rows if getattr(row, by) is not None]
    words = by in ("run", "recipe", "state")
    told.sort(key=lambda row: getattr(row, by), reverse=reverse if words else not reverse)
    return told + [row for row in rows if getattr(row, by) is None]


def table(rows: list[Row]) -> list[str]:
    """The runs in aligned columns."""
    head = ("run", "recipe", "state", "steps", "reward", "gain", "95 % interval", "hours")
    cells = [
        (
            cut(seen(row.run), 48), cut(seen(row.recipe), 32), row.state,
            f"{row.steps:,}" + (f"/{row.planned_steps:,}" if row.planned_steps else ""),
            _signed(row.reward, 2), _signed(row.gain, 3),
            "" if row.ci_low is None or row.ci_high is None else f"[{row.ci_low:+.3f}, {row.ci_high:+.3f}]",
            "–" if row.hours is None else f"{row.hours:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return aligned([head, *cells], left=(0, 1, 2))


def _signed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:+.{digits}f}"
