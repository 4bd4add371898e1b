"""The comparison app: `python app.py [RUN|ADAPTER …]`; `--help` lists the options, docs/app.md tells the rest."""

import sys

from grlo_lite.app.command import main
from grlo_lite.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
