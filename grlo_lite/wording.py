"""Text for people: aligned tables, durations, shortened values, the numbers of a row of results."""

from collections.abc import Collection
from typing import Any


def numbers(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """A row of evaluation.json as a table shows it: base, tuned, difference, interval, which a metric may not have."""
    interval = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]" if "ci_low" in row else "none"
    return f"{row['base']:.3f}", f"{row['tuned']:.3f}", f"{row['difference']:+.3f}", interval


def aligned(rows: list[tuple[str, ...]], left: Collection[int]) -> list[str]:
    """The rows as lines of equally wide cells; the columns of the numbers in `left` are flush left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if number in left else '>'}{width}}}" for number, width in enumerate(widths))
    return [line.format(*row).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def shortened(value: object) -> str:
    """A value as Python writes it, in at most 80 characters: what was typed may be a whole file."""
    try:
        return cut(repr(value))
    except ValueError:  # a number of more digits than Python writes out
        return "(a number of thousands of digits)"


def cut(text: str, most: int = 80) -> str:
    """The text in at most `most` characters; of a longer one the middle goes, for a path's end says the most."""
    end = most // 3
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"
