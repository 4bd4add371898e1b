"""Every task that the installed lm-eval knows, tried without a network: `python benchmarks/lm_eval_tasks.py`.

Each is loaded by itself as `evaluate --tasks NAME --data-dir DIR` loads it: its YAML, its code, its metrics and its way
to generate are read before its questions are sought, so that one which lacks a file alone could be asked with that.
Every name loads, or ends in one line that says what it lacks. Prints a table of counts; `--out FILE` keeps the lines.
"""

import argparse
import collections
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grlo_lite.cli import settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.harness import loading
from grlo_lite.evaluation.harness.served import Serving
from grlo_lite.evaluation.tasks.questions import Missing

KINDS = (  # of what a task lacks, by what its line says
    ("its questions alone, in a file", r"^no .* in "),
    ("a network", r"data set .* cannot be loaded"),
    ("a package, or a program", r"needs a package|[Pp]lease install|not installed"),
    ("a metric that is a program on the Hub", r"program of Hugging Face"),
    ("images or sounds", r"images or plays sounds"),
    ("leave to run the model's code", r"runs code"),
    ("a way to generate that the decoder has not", r"generates with"),
    ("an aggregation of its metric", r"cannot be paired"),
    ("something else", r""),
)


def kind_of(line: str) -> str:
    return next(kind for kind, pattern in KINDS if re.search(pattern, line))


def tried(name: str, index: Any, serving: Serving) -> str:
    """Why a task cannot be asked, in a line; empty where it loads."""
    try:
        loading.one(name, index, None, serving, 0)
    except (Missing, BadInput) as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file for every task's line")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder whose files serve some of them")
    parser.add_argument("--only", help="a regular expression of names")
    parser.add_argument("--part", default="1/1", help="of how many parts this is which, as 2/4")
    arguments = parser.parse_args()
    settle_libraries(offline=True)
    index = loading.manager(None)
    part, parts = map(int, arguments.part.split("/"))
    names = [n for n in index.all_subtasks if re.search(arguments.only or "", n)][part - 1 :: parts]
    serving = Serving(arguments.data_dir, code_allowed=True)
    began, lines = time.monotonic(), {}
    for name in tqdm(names, unit="task", mininterval=10):
        lines[name] = tried(name, index, serving)
    wrong = [name for name, line in lines.items() if "\n" in line]
    counts = collections.Counter(kind_of(line) if line else "loads" for line in lines.values())
    print(f"{len(lines):,} tasks in {time.monotonic() - began:.0f} seconds; lines of more than one line: {len(wrong)}")
    for kind, count in counts.most_common():
        print(f"| {kind} | {count:,} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(lines, indent=1))
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
