"""Five seeds of the microcosm, base → tuned: `python benchmarks/seeds.py [section.key=value …]`. Prints the README's
table.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEEDS = range(5)


def main(overrides: list[str]) -> int:
    """Runs the job once a seed, each in a process of its own, and prints a Markdown table of what was measured."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            run = Path(folder) / str(seed)
            began = time.monotonic()
            command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(run), f"seed={seed}", *overrides]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            rows.append((seed, time.monotonic() - began, json.loads((run / "evaluation.json").read_text())))
            print(f"seed {seed}: {rows[-1][1]:.0f} s", file=sys.stderr)
    print(seeds_table(rows))
    return 0


def seeds_table(rows: list[tuple[int, float, dict[str, Any]]]) -> str:
    """Markdown: a row a seed, base → tuned for each task, and the average's difference with its interval."""
    names = [f"{task['domain']} ({task['metric']})" for task in rows[0][2]["tasks"]]
    lines = ["| seed | " + " | ".join(names) + " | mean gain in accuracy [95 % interval] | seconds |"]
    lines.append("| --- " * (len(names) + 3) + "|")
    for seed, seconds, evaluation in rows:
        cells = [f"{task['base']:.2f} → {task['tuned']:.2f}" for task in evaluation["tasks"]]
        average = evaluation["average"]
        gain = f"{average['difference']:+.3f} [{average['ci_low']:+.3f}, {average['ci_high']:+.3f}]"
        lines.append(f"| {seed} | " + " | ".join(cells) + f" | {gain} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
