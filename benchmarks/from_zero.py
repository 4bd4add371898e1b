"""Learning from a base that hardly ever ends an answer, with unfinished answers in order and with all of them alike:
`python benchmarks/from_zero.py [--at-once 2] [--work DIR] [section.key=value …]`. Prints a table. With --work the runs
are kept there, and a finished one is not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RECIPE = "microcosm-from-zero"
SEEDS = range(5)
ASKED = 2000  # answers of the base
LAST = 5  # steps over which the tuned policy's share is taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--penalty-seeds", type=int, nargs="*", default=list(SEEDS), help="of the runs with `penalty`")
    parser.add_argument("--work", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--out", type=Path, help="a JSON file for what was measured")
    parser.add_argument("override", nargs="*", help="section.key=value, for every run")
    arguments = parser.parse_intermixed_args()
    base = base_ends(ASKED, arguments.override)
    print(f"the base ends {base:.4f} of {ASKED} answers within the limit", flush=True)
    wanted = [("ordered", seed) for seed in SEEDS] + [("penalty", seed) for seed in arguments.penalty_seeds]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.at_once) as pool:
        folder = arguments.work or Path(scratch)
        rows = list(pool.map(lambda run: measured(folder, run[0], run[1], arguments.override), wanted))
    if arguments.out:
        arguments.out.write_text(json.dumps({"base_ends": base, "runs": rows}, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def base_ends(count: int, overrides: list[str]) -> float:
    """The share of `count` sampled answers of the recipe's base that end within `rollout.max_tokens`."""
    from grlo_lite.generation.answers import sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import backends, chat_template, loading
    from grlo_lite.prompts import prepared
    from grlo_lite.recipe import loading as recipes

    recipe = recipes.load(RECIPE, overrides)
    policy = loading.load_policy(recipe, backends.place(recipe))
    rows = prepared.prompt_rows(recipe).train
    texts = [chat_template.formatted(policy.tokenizer, rows[i % len(rows)]) for i in range(count)]
    answers = sampled_answers(policy, texts, Sampling(recipe.rollout.max_tokens), 64, seed=0)
    return sum(not answer.truncated for answer in answers) / count


def measured(folder: Path, mode: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run's share of ended answers over its last steps and its average accuracy, base and tuned."""
    run = folder / f"{mode}-{seed}"
    words = [RECIPE, f"seed={seed}", f"reward.truncated.mode={mode}", *overrides, "--run-dir", str(run)]
    if not (run / "summary.json").is_file():
        subprocess.run([sys.executable, "-m", "grlo_lite.train", *words], check=True, capture_output=True)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    average = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["average"]
    ends = 1 - sum(line["truncated_fraction"] for line in metrics[-LAST:]) / LAST
    row = {"mode": mode, "seed": seed, "ends": ends, "seconds": metrics[-1].get("wall_seconds"), **average}
    print(f"{mode}, seed {seed}: ends {ends:.2f}, accuracy {average['difference']:+.3f}", file=sys.stderr, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a run."""
    lines = [
        "| unfinished answers | seed | answers that end, last steps | average accuracy, base → tuned | gain [95 %] |"
    ]
    lines.append("| --- " * 5 + "|")
    lines += [
        f"| {row['mode']} | {row['seed']} | {row['ends']:.2f} | {row['base']:.3f} → {row['tuned']:.3f} "
        f"| {row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}] |"
        for row in sorted(rows, key=lambda row: (row["mode"], row["seed"]))
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
