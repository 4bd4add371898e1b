"""The paper's comparison in miniature: `python benchmarks/paper.py [--seeds 0 1 2 3 4]`. Prints the tables of
docs/paper.md.

On the microcosm, at equal rollouts, by the same optimizer: the base; GRLO (a reward model on chat prompts alone); RLVR
in one domain (right or wrong in arithmetic); RLVR in all four; and GRLO for half of the rollouts, then RLVR in all from
its adapter. Each run's own evaluation is the end result, 300 questions a domain; its checkpoints, asked 100 questions a
domain, are the curve.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy import stats

from grlo_lite.microcosm import world

TRAINED = {"GRLO": (), "RLVR, arithmetic": ("arithmetic",), "RLVR, all": world.VERIFIABLE, "GRLO, then RLVR": ()}
SAME = ("algorithm.updates_per_rollout=4", "optimizer.learning_rate=6e-4", "evaluation.heldout_prompts=0")
EVERY, BATCH, GROUP = 5, 32, 8
TARGETS = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class System:
    """What one seed's run of a system came to: accuracies by domain at the end, base and tuned, the curve of the
    average by rollouts, seconds of rollouts, rewards and updates, and prompts asked.
    """

    base: dict[str, float]
    tuned: dict[str, float]
    curve: list[tuple[int, float]]
    seconds: float
    prompts: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=40, help="of 32 rollouts each, a multiple of 10")
    parser.add_argument("--questions", type=int, default=300, help="a domain, at the end of a run")
    parser.add_argument("--curve-questions", type=int, default=100, help="a domain, at each checkpoint")
    arguments = parser.parse_args()
    began, by_seed = time.process_time(), []
    with TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            by_seed.append(systems_of(seed, arguments, Path(folder) / str(seed)))
            print(f"seed {seed} is done", file=sys.stderr, flush=True)
    children = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    print(tables(by_seed))
    print(f"\n{(time.process_time() - began + children) / 60:.1f} CPU minutes for {len(by_seed)} seeds.")
    return 0


def systems_of(seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, System]:
    """Trains every system with a seed, measures its checkpoints, and gives them by name."""
    steps, half = arguments.steps, arguments.steps // 2
    everything = ("prompts.source=microcosm-questions", "reward.verifiable=microcosm")
    jobs = {
        "GRLO": ("microcosm", steps, ()),
        "RLVR, arithmetic": ("microcosm-rlvr", steps, ()),
        "RLVR, all": ("microcosm-rlvr", steps, everything),
        "GRLO, then RLVR": (
            "microcosm-grlo-then-rlvr", steps - half, ("--from", str(folder / "GRLO" / "checkpoints" / f"step-{half}")),
        ),
    }  # fmt: skip
    for name, (recipe, count, words) in jobs.items():
        budget = (f"budget.steps={count}", f"budget.checkpoint_every={EVERY}", "budget.checkpoints_kept=100")
        options = (*SAME, *budget, f"seed={seed}", f"evaluation.limit={arguments.questions}")
        command = [sys.executable, "-m", "grlo_lite.train", recipe, *words, *options, "--run-dir", str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: {done.stderr[-2000:]}")
    base, curves = measured_curves([folder / name for name in jobs], seed, arguments.curve_questions)
    first = [point for point in curves[0] if point[0] <= half * BATCH]
    curves[3] = first + [(rollouts + half * BATCH, average) for rollouts, average in curves[3]]
    found = {}
    for (name, (_, count, _)), curve in zip(jobs.items(), curves, strict=True):
        ended = _ended(folder / name)
        seconds, prompts = _seconds(folder / name, count), count * BATCH // GROUP
        if name == "GRLO, then RLVR":
            seconds, prompts = seconds + _seconds(folder / "GRLO", half), steps * BATCH // GROUP
        arms = [{task["domain"]: task[arm] for task in ended["tasks"]} for arm in ("base", "tuned")]
        found[name] = System(arms[0], arms[1], [(0, base), *curve], seconds, prompts)
    return found


def _ended(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text())


def _seconds(run: Path, steps: int) -> float:
    """Seconds of rollouts, rewards and updates of a run's first steps: no import, no loading, no measurement."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][:steps]
    return sum(line[f"{phase}_seconds"] for line in lines for phase in ("rollout", "reward", "update"))


def measured_curves(runs: list[Path], seed: int, questions: int) -> tuple[float, list[list[tuple[int, float]]]]:
    """The base's average accuracy, and each run's by rollouts, a point a checkpoint; the same questions for all."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from grlo_lite.generation.answers import sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import chat_template, names, trained_adapter

    policy = trained_adapter.load_trained(str(names.POLICY), "main", "nf4", runs[0] / "adapter", torch.device("cpu"))
    asked = [question for domain in world.VERIFIABLE for question in world.exam(domain, questions, seed)]
    texts = [chat_template.formatted(policy.tokenizer, [{"role": "user", "content": q.text}]) for q in asked]

    def average() -> float:
        said = sampled_answers(policy, texts, Sampling(max_tokens=48), 128, seed)
        return float(np.mean([world.is_right(q, a.text) for q, a in zip(asked, said, strict=True)]))

    curves = []
    for run in runs:
        folders = sorted((run / "checkpoints").glob("step-*"), key=lambda folder: int(folder.name[5:]))
        points = []
        for folder in folders:
            set_peft_model_state_dict(policy.model, load_file(folder / "adapter_model.safetensors"))
            points.append((int(folder.name[5:]) * BATCH, average()))
        curves.append(points)
    with policy.model.disable_adapter():
        return average(), curves


def rollouts_to(curve: list[tuple[int, float]], target: float) -> float | None:
    """The rollouts after which a curve first reaches the target, between two checkpoints in proportion; None where it
    never does.
    """
    if curve[0][1] >= target:
        return 0.0
    for (before, low), (after, high) in pairwise(curve):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


def spread(values: list[float]) -> str:
    """A mean over seeds with Student's 95 % interval, where there is more than one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def tables(by_seed: list[dict[str, System]]) -> str:
    """Markdown: accuracy by domain, gain inside and outside of what was trained, and rollouts to a like average."""
    rows = ["| system | " + " | ".join(world.VERIFIABLE) + " | average | prompts | rollouts | seconds |"]
    rows.append("| --- " * (len(world.VERIFIABLE) + 5) + "|")
    rows.append(_accuracies("base", [next(iter(seed.values())).base for seed in by_seed]) + " 0 | 0 | 0 |")
    gains = [
        "| system | gain inside what it is trained on | gain outside | average gain |",
        "| --- | --- | --- | --- |",
    ]
    reached = ["| system | " + " | ".join(f"average {target}" for target in TARGETS) + " |"]
    reached.append("| --- " * (len(TARGETS) + 1) + "|")
    for name, domains in TRAINED.items():
        runs = [seed[name] for seed in by_seed]
        rollouts, seconds = runs[0].curve[-1][0], np.mean([run.seconds for run in runs])
        rows.append(_accuracies(name, [r.tuned for r in runs]) + f" {runs[0].prompts} | {rollouts:,} | {seconds:.0f} |")
        inside = world.VERIFIABLE if name == "GRLO, then RLVR" else domains
        outside = [domain for domain in world.VERIFIABLE if domain not in inside]
        cells = [_gain(runs, list(inside)), _gain(runs, outside), _gain(runs, list(world.VERIFIABLE))]
        gains.append(f"| {name} | " + " | ".join(cells) + " |")
        reached.append(f"| {name} | " + " | ".join(_reached(runs, target) for target in TARGETS) + " |")
    stages = [
        _gain([r["GRLO, then RLVR"] for r in by_seed], [d], [r["GRLO"] for r in by_seed]) for d in world.VERIFIABLE
    ]
    second = "; ".join(f"{domain} {gain}" for domain, gain in zip(world.VERIFIABLE, stages, strict=True))
    said = f"GRLO, then RLVR less GRLO alone, at equal rollouts, by domain: {second}."
    return "\n\n".join(["\n".join(part) for part in (rows, gains, reached)] + [said])


def _accuracies(name: str, by_seed: list[dict[str, float]]) -> str:
    means = [float(np.mean([found[domain] for found in by_seed])) for domain in world.VERIFIABLE]
    return f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in [*means, float(np.mean(means))]) + " |"


def _gain(runs: list[System], domains: list[str], less: list[System] | None = None) -> str:
    """What the runs gained over their base, or over others of the same seeds, on average over these domains."""
    if not domains:
        return "–"
    before = [run.base for run in runs] if less is None else [run.tuned for run in less]
    return spread(
        [
            float(np.mean([run.tuned[domain] - found[domain] for domain in domains]))
            for run, found in zip(runs, before, strict=True)
        ]
    )


def _reached(runs: list[System], target: float) -> str:
    found = [rollouts_to(run.curve, target) for run in runs]
    known = [count for count in found if count is not None]
    if not known:
        return "never"
    seeds = "" if len(known) == len(found) else f" ({len(known)} of {len(found)} seeds)"
    return f"{np.mean(known):.0f}{seeds}"


if __name__ == "__main__":
    sys.exit(main())
