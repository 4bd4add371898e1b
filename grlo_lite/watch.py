"""A run in the terminal, live, from its files alone: `python -m grlo_lite.watch RUN`."""

import shutil
import sys
import time
from pathlib import Path

from grlo_lite.cli import command_line, run_command
from grlo_lite.errors import BadInput
from grlo_lite.reporting.record import record_of
from grlo_lite.reporting.sections import DAMAGE, damaged
from grlo_lite.reporting.terminal import screen

CLEAR, HOME_AND_REST = "\033[2J\033[H", "\033[H\033[J"


def main(argv: list[str] | None = None) -> int:
    """Shows the run until it is finished, once where the output is no terminal. Raises BadInput where there is none."""
    parser = command_line("watch", "A running or finished run in the terminal, from its files; Ctrl-C ends it.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--once", action="store_true", help="show it once; so it is where the output is no terminal")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="default: 2")
    arguments = parser.parse_args(argv)
    if not 0.1 <= arguments.every <= 3600:
        raise BadInput(f"--every={arguments.every:g} is no pause; choose one from 0.1 to 3600 seconds")
    live = sys.stdout.isatty() and not arguments.once
    if not live:
        print("\n".join(shown(arguments.run, shutil.get_terminal_size((100, 40)).columns)[0]))
        return 0
    print(CLEAR, end="")
    try:
        while True:
            size = shutil.get_terminal_size((100, 40))
            lines, state = shown(arguments.run, size.columns - 1)
            print(HOME_AND_REST + "\n".join(lines[: size.lines - 1]), end="", flush=True)
            if state == "finished":
                break
            time.sleep(arguments.every)
    except KeyboardInterrupt:  # that is how one stops looking
        pass
    print()
    return 0


def shown(run: Path, columns: int) -> tuple[list[str], str]:
    """The run's screen and its state."""
    record = record_of(run)
    try:
        return screen(record, columns), record.state
    except DAMAGE as error:
        return [damaged(str(run), error)], record.state


if __name__ == "__main__":
    sys.exit(run_command(main))
