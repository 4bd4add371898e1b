"""How much a run survives: `python benchmarks/survival.py [--runs 30] [--corruptions 100] [--cost]`.

Kills runs with -9 at random moments, several times each, resumes them, and compares the adapter's hash with that of an
uninterrupted run; damages checkpoints at random and looks at what a resumed run makes of it; times what checkpoints at
every step cost. Prints a line a result; the exit code is 1 where something was lost.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir

SHORT = ("budget.steps=10", "evaluation.suite=none", "evaluation.heldout_prompts=0", "budget.checkpoint_every=1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--corruptions", type=int, default=100)
    parser.add_argument("--cost", action="store_true", help="only time what checkpoints at every step cost")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.cost:
            print(cost(Path(folder)))
            return 0
        same = killed_runs(Path(folder), arguments.runs)
        safe = corrupted_checkpoints(Path(folder), arguments.corruptions)
    return 0 if same == arguments.runs and safe == arguments.corruptions else 1


def trained(path: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(path), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(path: Path, *words: str) -> None:
    process = trained(path, *words)
    _, said = process.communicate()
    assert process.returncode == 0, said


def adapter_sha256(path: Path) -> str:
    return json.loads((path / "summary.json").read_text())["adapter_sha256"]


def killed_runs(folder: Path, runs: int) -> int:
    """How many of the killed runs ended as the uninterrupted one of the same kind, each step in metrics.jsonl once."""
    backends = ["transformers", "unsloth"] if find_spec("unsloth") else ["transformers"]
    kinds = [(f"algorithm.name={name}", f"backend={backend}") for backend in backends for name in ("grpo", "rloo")]
    whole, took = {}, {}
    for kind in kinds:
        began = time.monotonic()
        finished(path := folder / "-".join(kind), *SHORT, *kind)
        whole[kind], took[kind] = adapter_sha256(path), time.monotonic() - began
    same, moments = 0, random.Random(0)
    for number in range(runs):
        kind, path, kills = kinds[number % len(kinds)], folder / f"killed-{number}", 0
        while kills < 3 and not RunDir(path).finished:
            process = trained(path, *(["--resume"] if path.exists() else [*SHORT, *kind]))
            try:
                process.wait(took[kind] * moments.uniform(0.2, 0.9))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        if not RunDir(path).finished:
            finished(path, *(["--resume"] if path.exists() else [*SHORT, *kind]))
        once = [line["step"] for line in files.read_lines(path / "metrics.jsonl")] == list(range(1, 11))
        equal = adapter_sha256(path) == whole[kind]
        same += equal and once
        print(
            f"run {number}: {' '.join(kind)}, killed {kills} times, equal: {equal}, each step once: {once}", flush=True
        )
    print(f"{same} of {runs} killed runs end as the uninterrupted one")
    return same


def corrupted_checkpoints(folder: Path, corruptions: int) -> int:
    """How often a damaged newest checkpoint was passed over for the one before, or refused in one line."""
    finished(source := folder / "source", *SHORT)
    newest, before = RunDir(source).checkpoint_folders()[-1], RunDir(source).checkpoint_folders()[-2]
    names, chance, outcomes = sorted(p.name for p in newest.iterdir()), random.Random(0), Counter()
    for number in range(corruptions):
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(source, folder / "copy")
        damage(folder / "copy" / "checkpoints" / newest.name / chance.choice(names), number % 4, chance)
        try:
            taken = RunDir(folder / "copy").checkpoint_to_resume()
            outcomes["the one before" if taken and taken.name == before.name else "another"] += 1
        except BadInput:
            outcomes["refused"] += 1
    print(f"{corruptions} damaged checkpoints: {dict(outcomes)}")
    return outcomes["the one before"] + outcomes["refused"]


def damage(file: Path, how: int, chance: random.Random) -> None:
    data = file.read_bytes()
    at = chance.randrange(len(data))
    if how == 0:
        file.write_bytes(data[:at])
    elif how == 1:
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    elif how == 2:
        file.unlink()
    else:
        file.write_bytes(b"")


def cost(folder: Path) -> str:
    """The wall time of whole microcosm runs with a checkpoint at every step and with one at the end, in turn."""
    seconds: dict[int, list[float]] = {1: [], 40: []}
    for repeat in range(3):
        for every, times in seconds.items():
            began = time.monotonic()
            finished(folder / f"{repeat}-{every}", f"budget.checkpoint_every={every}")
            times.append(time.monotonic() - began)
    often, once = (min(times) for times in seconds.values())
    return f"every step {often:.1f} s, once {once:.1f} s: {100 * (often / once - 1):+.1f} % (best of 3 each)"


if __name__ == "__main__":
    sys.exit(main())
