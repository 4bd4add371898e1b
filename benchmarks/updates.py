"""How many updates to make of a rollout, by GRPO, RLOO and PPO on the microcosm:
`python benchmarks/updates.py RESULTS.jsonl [--algorithms ppo] [--updates 1 4] [--seeds 0 1 2] [section.key=value …]`.

Appends a line a run to RESULTS.jsonl, skips those that it holds already, and prints the table of all that it holds;
`--table` only prints. Runs come one after the other, those that matter most first, so that little is lost where it is
cut off.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

ALGORITHMS = ("grpo", "rloo", "ppo")
UPDATES = (1, 4, 2, 8)
SEEDS = ((0, 1, 2), (3, 4))  # each part for all algorithms and updates before the next one
LAST = 10  # steps that the metrics are averaged over
# The judge that is not optimized looks once, at the end; it draws no number that training would have drawn
COMMON = ("reward.heldout.name=microcosm-heldout", "reward.heldout.every=40", "reward.heldout.prompts=150")
METRICS = ("entropy", "clip_fraction", "explained_variance", "rollout_seconds", "reward_seconds", "update_seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--updates", nargs="+", type=int, default=UPDATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[seed for part in SEEDS for seed in part])
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("override", nargs="*", help="section.key=value, for every run")
    arguments = parser.parse_intermixed_args()
    if not arguments.table:
        for run in wanted(arguments.algorithms, arguments.updates, arguments.seeds):
            words = " ".join(arguments.override)
            if any((r["algorithm"], r["updates"], r["seed"], r["words"]) == (*run, words) for r in rows(arguments)):
                continue
            row = measured(*run, arguments.override)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{run}: {row['tuned']:.3f}, {row['cpu_seconds']:.0f} s", file=sys.stderr, flush=True)
    print(table(rows(arguments)))
    return 0


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the file holds."""
    if not arguments.results.is_file():
        return []
    return [json.loads(line) for line in arguments.results.read_text(encoding="utf-8").splitlines()]


def wanted(algorithms: list[str], updates: list[int], seeds: list[int]) -> list[tuple[str, int, int]]:
    """The runs in their order: by updates in pairs, then by seed."""
    halves = (updates[:2], updates[2:])
    return [
        (algorithm, count, seed)
        for half in halves
        for part in SEEDS
        for seed in part
        if seed in seeds
        for count in half
        for algorithm in algorithms
    ]


def measured(algorithm: str, updates: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run, in a process of its own: accuracies, rewards by both judges, and what its last steps were like."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "r"
        words = (f"seed={seed}", f"algorithm.name={algorithm}", f"algorithm.updates_per_rollout={updates}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "grlo_lite.train", "microcosm", *COMMON, *words, *overrides]
        subprocess.run([*command, "--run-dir", str(run)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        last = [line for line in steps if "reward_heldout_mean" in line][-1]
    found = {key: mean(s[key] for s in steps[-LAST:]) for key in METRICS if key in steps[-1]}
    if "explained_variance" in steps[-1]:
        found["explained_variance"] = steps[-1]["explained_variance"]  # of the last ten steps itself
    return {
        "algorithm": algorithm,
        "updates": updates,
        "seed": seed,
        "words": " ".join(overrides),
        **evaluation["average"],
        "domains": {task["domain"]: [task["base"], task["tuned"]] for task in evaluation["tasks"]},
        "judge": last["reward_fixed_mean"],
        "heldout_judge": last["reward_heldout_mean"],
        **found,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each algorithm and count of updates, the mean over the seeds with its 95 % t interval."""
    lines = [
        "| algorithm | updates | seeds | average accuracy [95 %] | least | gain | trained judge "
        "| held-out judge | entropy | clipped | explained variance | CPU seconds |"
    ]
    lines.append("| --- " * 12 + "|")
    kinds = sorted({(r["algorithm"], r["words"], r["updates"]) for r in found})
    for algorithm, words, updates in kinds:
        runs = [r for r in found if (r["algorithm"], r["words"], r["updates"]) == (algorithm, words, updates)]
        tuned = [r["tuned"] for r in runs]
        known = [r["explained_variance"] for r in runs if "explained_variance" in r]
        explained = f"{mean(known):.2f}" if known else "–"
        cells = [f"{mean(r[key] for r in runs):{form}}" for key, form in SHOWN.items()]
        name = f"{algorithm.upper()} {words}".strip()
        lines.append(
            f"| {name} | {updates} | {len(runs)} | {interval(tuned)} | {min(tuned):.3f} | " + " | ".join(cells[:-1])
            + f" | {explained} | {cells[-1]} |"
        )  # fmt: skip
    return "\n".join(lines)


SHOWN = {
    "difference": "+.3f",
    "judge": ".2f",
    "heldout_judge": ".2f",
    "entropy": ".2f",
    "clip_fraction": ".3f",
    "cpu_seconds": ".0f",
}


def interval(values: list[float]) -> str:
    """The mean of a few values with its 95 % t interval, where there are at least two."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.3f} [{mean(values) - half:.3f}, {mean(values) + half:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
