"""The report: one HTML file that holds all that it shows, asks nothing of anybody and runs nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.reporting import sections, several
from grlo_lite.reporting.html import note, plain
from grlo_lite.reporting.record import Record
from grlo_lite.rundir.files import write_atomically
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import duration

STYLES = (Path(__file__).parent / "page.css", sections.STYLE)
# Nothing is loaded and no script runs, whatever a completion that got past the escapes would ask for
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def report_of(record: Record) -> str:
    """One run's report."""
    parts = {title: sections.shown(record, section) for title, section in sections.SECTIONS.items()}
    parts["As it learnt"] = sections.shown(record, sections.first_and_last_samples)
    lead = sections.shown(record, sections.lead) + sections.shown(record, tiles) + sections.missing(record)
    return _document(record.name, f"A training run · {record.path.resolve().name} · {record.state}", lead, parts)


def comparison_of(records: list[Record]) -> str:
    """The report of several runs, laid over each other."""
    groups = several.grouped(records)
    parts = {title: _guarded(groups, section) for title, section in several.SECTIONS.items()}
    missing = [note(f"{record.path.name}: {said}", "missing") for record in records for said in record.missing]
    lead = f'<p class="verdict">{len(records)} runs of {_counted(len(groups))}: {plain("; ".join(groups))}.</p>'
    if missing:
        parts["Missing"] = "".join(missing)
    return _document("Runs side by side", ", ".join(record.path.resolve().name for record in records), lead, parts)


def tiles(record: Record) -> str:
    """The numbers that are looked for first."""
    average = record.evaluation.get("average")
    rewards = [line["reward_mean"] for line in record.lines if "reward_mean" in line]
    last = record.lines[-1] if record.lines else {}
    shown = {}
    if average:
        interval = f"[{100 * average['ci_low']:+.1f}, {100 * average['ci_high']:+.1f}]"
        shown["points of accuracy"] = (f"{100 * average['difference']:+.1f}", interval)
    if rewards:
        shown["reward"] = (f"{rewards[-1]:+.2f}", f"from {rewards[0]:+.2f}")
    if "truncated_fraction" in last:
        first = record.lines[0].get("truncated_fraction", 0)
        shown["cut at their length"] = (f"{last['truncated_fraction']:.0%}", f"from {first:.0%}")
    if record.seconds is not None:
        cost = record.summary.get("cost_usd")
        shown["of training"] = (
            duration(record.seconds),
            f"${cost:.2f}" if cost is not None else f"{record.steps:,} steps",
        )
    cells = "".join(
        f"<div><dt>{plain(name)}</dt><dd>{plain(value)} <small>{plain(more)}</small></dd></div>"
        for name, (value, more) in shown.items()
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def write(records: list[Record], to: Path) -> Path:
    """Writes the report of one run, or of several, to the file. Raises OSError where the disk does not take it."""
    write_atomically(to, report_of(records[0]) if len(records) == 1 else comparison_of(records))
    return to


def closing_line(run: RunDir) -> str:
    """Writes a finished run's report, and says where it is or why it could not be written: it never ends a run."""
    try:
        return f"the report is {write([Record(run.path)], run.report)}"
    except OSError as error:
        return (
            f"the report could not be written ({error.strerror}); python -m grlo_lite.report {run.path} does it later"
        )


def _guarded(groups: several.Groups, section: Callable[[several.Groups], str]) -> str:
    try:
        return section(groups)
    except sections.DAMAGE as error:
        return note(sections.damaged("these runs", error), "refused")


def _counted(count: int) -> str:
    return "one recipe" if count == 1 else f"{count} recipes"


def _document(title: str, above: str, lead: str, parts: dict[str, Any]) -> str:
    style = "\n".join(path.read_text(encoding="utf-8") for path in STYLES)
    body = "".join(
        f'<section id="part-{number}"><h2>{plain(name)}</h2>{shown}</section>'
        for number, (name, shown) in enumerate(parts.items())
    )
    links = "".join(f'<a href="#part-{number}">{plain(name)}</a>' for number, name in enumerate(parts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{plain(title)} · grlo_lite</title><style>\n{style}</style></head>'
        f'<body><header><p class="above">{plain(above)}</p><h1>{plain(title)}</h1>{lead}<nav>{links}</nav></header>'
        f"<main>{body}</main><footer>Written by grlo_lite from the files of the run.</footer></body></html>\n"
    )
