"""A table of runs: `grlo-lite runs [FOLDER] [--sort COLUMN] [--json]`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from grlo_lite.cli import command_line, run_command
from grlo_lite.errors import BadInput
from grlo_lite.reporting.record import SIGNS, Record
from grlo_lite.reporting.terminal import SORTED_BY, in_order, row_of, table
from grlo_lite.rundir.layout import RUNS
from grlo_lite.wording import cut


def main(argv: list[str] | None = None) -> int:
    """Prints the table. Raises BadInput where there is no such folder, or no run in it."""
    parser = command_line(
        "runs", "The runs of a folder: recipe, steps, reward, average gain with interval, hours, state."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RUNS, metavar="FOLDER", help=f"default: {RUNS}/")
    parser.add_argument("--sort", choices=SORTED_BY, default="written", help="default: written, the newest first")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--json", action="store_true", help="as JSON, a list of objects")
    arguments = parser.parse_args(argv)
    if not os.path.isdir(arguments.folder):  # Path.is_dir() raises where a name is too long
        raise BadInput(f"there is no folder {cut(str(arguments.folder))}; name one that holds runs")
    found = sorted({file.parent for name in SIGNS for file in arguments.folder.glob(f"*/{name}")})
    if not found:
        raise BadInput(f"there is no run in {cut(str(arguments.folder))}; python -m grlo_lite.train makes one")
    rows = in_order([row_of(Record(path)) for path in found], arguments.sort, arguments.reverse)
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
