"""The default run by itself and beside one busy core: `python benchmarks/busy.py [section.key=value …] [--before]`.

Prints JSON: the seconds of each run, their ratio, and both adapters' hashes. `--before` runs it beside the busy core
once more with two threads that spin while they wait, as OpenMP does of its own accord; that takes many times as long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BAR = 1.6  # how many times its quiet time the run may take beside one busy core
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINNING = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}


def main() -> int:
    """Returns 0 where the busy run took at most BAR times as long and gave the same adapter, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--before", action="store_true", help="two threads that spin, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        quiet = timed_run(Path(folder) / "quiet", arguments.overrides, {})
        with one_busy_core():
            busy = timed_run(Path(folder) / "busy", arguments.overrides, {})
            before = timed_run(Path(folder) / "before", arguments.overrides, SPINNING) if arguments.before else None
    ratio = busy["seconds"] / quiet["seconds"]
    result = {
        "cores": len(os.sched_getaffinity(0)),
        "quiet": quiet,
        "busy": busy,
        **({"busy, two spinning threads": before} if before else {}),
        "ratio": round(ratio, 2),
        "same_adapter": quiet["adapter_sha256"] == busy["adapter_sha256"],
    }
    print(json.dumps(result, indent=2))
    return 0 if ratio <= BAR and result["same_adapter"] else 1


def timed_run(path: Path, overrides: list[str], threads: dict[str, str]) -> dict[str, Any]:
    """The whole command's seconds, those of its training alone, and its adapter's hash; `threads` are OpenMP's
    settings, which are otherwise left to the command.
    """
    environment = {key: value for key, value in os.environ.items() if key not in THREADS} | threads
    command = [sys.executable, "-m", "grlo_lite.train", "microcosm", "--run-dir", str(path), *overrides]
    began = time.monotonic()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    summary = json.loads((path / "summary.json").read_text())
    training = round(summary["wall_seconds"], 1)
    return {"seconds": round(seconds, 1), "training": training, "adapter_sha256": summary["adapter_sha256"]}


@contextmanager
def one_busy_core() -> Iterator[None]:
    """Inside, a child process computes without a pause."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
