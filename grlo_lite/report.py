"""One page about a run, or about several laid over each other: `python -m grlo_lite.report RUN [RUN …]`."""

import sys
from pathlib import Path

from grlo_lite.cli import command_line, run_command
from grlo_lite.errors import BadInput
from grlo_lite.reporting import page
from grlo_lite.reporting.record import record_of


def main(argv: list[str] | None = None) -> int:
    """Writes the page, and returns the exit code. Raises BadInput where there is no such run, or no place for it."""
    parser = command_line("report", "One self-contained HTML page about a run, or about several laid over each other.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, finished or not")
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="default: RUN/report.html; of several, the first one's comparison.html"
    )
    arguments = parser.parse_args(argv)
    records = [record_of(path) for path in dict.fromkeys(arguments.runs)]
    to = arguments.to or (records[0].run.report if len(records) == 1 else records[0].path / "comparison.html")
    try:
        page.write(records, to)
    except OSError as error:
        raise BadInput(f"{to} cannot be written: {error.strerror}; name another place by --to FILE") from None
    missing = [said for record in records for said in record.missing]
    print("\n".join([*missing, f"{to}, {to.stat().st_size / 2**10:,.0f} KiB"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
