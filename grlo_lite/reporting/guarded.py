"""The guards of a run as HTML: what each watched, the worst that it saw, and what it said."""

from typing import Any

from grlo_lite.recipe.schema import Guards, Watched
from grlo_lite.reporting.html import excerpt, html_table, note, plain
from grlo_lite.reporting.record import Record, number

SAMPLES = 2  # that a guard saved, shown


def guards(record: Record) -> str:
    """A table of the guards, and what those that spoke said, with the samples that show it."""
    window = record.key("guards.window", 5)
    rows = [
        _row(record, name, watched, window)
        for name, field in Guards.model_fields.items()
        for watched in field.metadata
        if isinstance(watched, Watched) and any(name in line for line in record.lines)
    ]
    head = ["watched", "limit", "worst seen", "at step", "last", "spoke"]
    table = html_table(head, rows) + note(f"Seen: means over {window} steps.") if rows else note("no step to watch")
    said = "".join(_spoken(row) for row in record.guards)
    return (said or note("No guard spoke.", "well")) + table


def _row(record: Record, name: str, watched: Watched, window: int) -> list[str]:
    means = window_means(record.lines, name, window)
    worst = (max if watched.too_high else min)(means, key=lambda mean: mean[1], default=None)
    limit = number(record.key(f"guards.{name}.limit"))
    spoke = next((row.get("step") for row in record.guards if row.get("guard") == name), None)
    return [
        name.replace("_", " "),
        "off" if limit is None else f"{'above' if watched.too_high else 'below'} {limit:g}",
        "–" if worst is None else f"{worst[1]:.3f}",
        "–" if worst is None else f"{worst[0]}",
        "–" if not means else f"{means[-1][1]:.3f}",
        "no" if spoke is None else f"at step {spoke}",
    ]


def window_means(lines: list[dict[str, Any]], name: str, window: int) -> list[tuple[int, float]]:
    """A metric's mean over the `window` steps up to each, where all of them have it; as the guards see it."""
    means = []
    for end in range(window, len(lines) + 1):
        values = [line[name] for line in lines[end - window : end] if name in line]
        if len(values) == window:
            means.append((lines[end - 1]["step"], sum(values) / window))
    return means


def _spoken(row: dict[str, Any]) -> str:
    name, step = str(row.get("guard")).replace("_", " "), row.get("step")
    ended = ", and the run was stopped" if row.get("action") == "stop" else ""
    saved = row.get("samples") if isinstance(row.get("samples"), list) else []
    shown = "".join(
        f'<p class="said" dir="auto">{excerpt(str(one.get("completion", "")), 600)}</p>'
        for one in (saved or [])[:SAMPLES]
        if isinstance(one, dict)
    )
    details = f"<details><summary>What it saw</summary>{shown}</details>" if shown else ""
    return (
        f'<div class="spoken"><p><b>{plain(name)}, step {plain(str(step))}</b>{ended}: '
        f"{plain(str(row.get('message', '')))}</p>{details}</div>"
    )
