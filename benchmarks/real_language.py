"""Reinforcement learning on a real language model without a GPU or a network.

    python benchmarks/real_language.py --data preferences.jsonl --prompts prompts.jsonl [--work DIR] [--at-once 2]
    python benchmarks/real_language.py --data … --prompts … --speed       one step beside a bare TRL script's
    python benchmarks/real_language.py --data … --prompts … --closed      unfinished answers shown closed or open

`--data` holds preference pairs, a JSON object a line with `split` (train, test), `prompt`, `chosen` and `rejected`;
`--prompts` what the policy is asked in training. First come the models (`real_models.py`): SmolLM2-135M-Instruct, the
judge that it is trained by, and one made on other prompts, which is only asked at the end. Then the recipe
`smollm2-135m-cpu` runs on them, three seeds and a control whose rewards are shuffled, `--at-once` of them side by side
with one thread each. Last, both judges score base and tuned answers to the same held-out prompts.

Each stage's output in the work folder is kept, and a run that was cut off is resumed: the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import real_models
import real_speed

RECIPE = "smollm2-135m-cpu"
SPLITS = {"judge-trained": ("train", "test"), "judge-heldout": ("test", "train")}  # made on, and asked about
SEEDS = (0, 1, 2)
# The recipe made short enough for a quarter of an hour a run on a busy machine
SETTINGS = (
    "prompts.max_tokens=128",
    "rollout.batch=32",
    "rollout.max_tokens=64",
    "reward.truncated.mode=score",  # most answers are cut off: the text earns what it earns, finished or not
    "reward.truncated.value=0",
    "algorithm.updates_per_rollout=1",
    "algorithm.kl=0.2",  # without it shuffled rewards disorder the text, which both judges score lower
    "optimizer.micro_batch=8",
    "optimizer.learning_rate=2e-4",
    "budget.steps=14",
    "budget.checkpoint_every=2",
    "evaluation.heldout_prompts=96",
)
BAR = 0.65  # of pairs in order of prompts that a judge was not made on

# The shown pairs: these, every one, as seed 0's run answers them. Written for this; of no data set.
SHOWN = (
    "Suggest three ways to make a small kitchen feel larger.",
    "Explain to a child why the moon changes its shape.",
    "How do I politely decline an invitation to a wedding?",
    "What should I check before buying a used bicycle?",
    "Give me a plan for learning to swim as an adult.",
    "Why does bread go stale, and what can I do with it then?",
    "Write a short note thanking a neighbour for watering my plants.",
    "What are the advantages of taking notes by hand?",
    "How can a small team run shorter meetings?",
    "Describe how to repot a plant that has outgrown its pot.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, JSON lines")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts to train on, in any of the kit's formats")
    parser.add_argument("--work", type=Path, default=Path("runs/real-language"), help="where models and runs are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the JSON goes")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--speed", action="store_true", help="only the step's time, beside a bare TRL script's")
    parser.add_argument("--closed", action="store_true", help="only what the judge makes of unfinished answers")
    parser.add_argument("--side", choices=("ours", "trl", "planned"), help=argparse.SUPPRESS)
    parser.add_argument("override", nargs="*", help="section.key=value, after the settings above")
    arguments = parser.parse_intermixed_args()
    if arguments.side:
        print(json.dumps(real_speed.measured(arguments.side, recipe_of(arguments))))
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    judges = made_models(arguments.work, arguments.data)
    if arguments.speed:
        result, printed = real_speed.compared(speed_command(arguments), recipe_of(arguments))
    elif arguments.closed:
        result = closed_or_open(arguments)
        printed = json.dumps(result, indent=1)
    else:
        result, printed = learnt(arguments, judges)
    kind = "-speed" if arguments.speed else "-unfinished" if arguments.closed else ""
    path = arguments.out / f"real-language{kind}-{cpu_name()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{printed}\n{path}")
    return 0


def cpu_name() -> str:
    """This CPU, as a part of a file's name."""
    from grlo_lite.planning.this_machine import cpu_name as named

    return "-".join("".join(c if c.isalnum() else " " for c in named().lower()).split())


# --- 1. The models ---------------------------------------------------------------------------------------------------


def made_models(work: Path, data: Path) -> dict[str, Any]:
    """Policy and judges in the work folder, made where they are missing; what is known of the judges."""
    if not (work / "policy").is_dir():
        real_models.make_policy(work / "policy")
    known = work / "judges.json"
    if known.is_file():
        return json.loads(known.read_text())
    of, judges = real_models.preferences(work / "policy", data, work / "preferences.npz"), {}
    for name, splits in SPLITS.items():
        rows, others = (real_models.pairs(data, split) for split in splits)
        if not (work / name).is_dir():
            real_models.make_judge(work / "policy", of, rows, work / name)
        judges[name] = asked_about(others) | {"in_order": real_models.judge_accuracies(of, work / name, others)}
        print(f"{name}: {judges[name]}", flush=True)
    folds = f"{real_models.FOLDS} folds, each asked a head made on the others"
    judges[folds] = asked_about(of.rows) | {"in_order": real_models.cross_validated(of)}
    known.write_text(json.dumps(judges, indent=1))
    return judges


def asked_about(rows: list[dict[str, str]]) -> dict[str, int]:
    return {"pairs": len(rows), "prompts": len({row["prompt"] for row in rows})}


# --- 2. The runs -----------------------------------------------------------------------------------------------------


def overrides(arguments: argparse.Namespace) -> list[str]:
    """The recipe's keys that make it run on the work folder's models."""
    work = arguments.work.resolve()
    return [
        f"model.name={work / 'policy'}",
        f"reward.name={work / 'judge-trained'}",
        "reward.quantization=none",  # 4 bits are lossy at a judge's width of 576
        f"prompts.source={arguments.prompts.resolve()}",
        *SETTINGS,
        *arguments.override,
    ]


def recipe_of(arguments: argparse.Namespace) -> Any:
    from grlo_lite.recipe import loading

    return loading.load(RECIPE, overrides(arguments))


def runs_of(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Each run's name, and what it has of its own."""
    seeds = {f"seed-{seed}": [f"seed={seed}"] for seed in arguments.seeds}
    return seeds | {"shuffled": ["seed=0", "reward.shuffle=true"]}


def trained(arguments: argparse.Namespace) -> None:
    """Carries out the runs that are not finished, so many at once. Exits where one ends in an error."""
    waiting = [(n, own) for n, own in runs_of(arguments).items() if not (arguments.work / n / "summary.json").is_file()]
    going: list[tuple[str, subprocess.Popen]] = []
    while waiting or going:
        while waiting and len(going) < arguments.at_once:
            name, own = waiting.pop(0)
            going.append((name, started(arguments, name, own)))
        time.sleep(1)
        for name, process in [(n, p) for n, p in going if p.poll() is not None]:
            going.remove((name, process))
            if process.returncode:
                raise SystemExit(f"{name} ended with {process.returncode}; see {arguments.work / name}.log")
            print(f"{name} is done", flush=True)


def started(arguments: argparse.Namespace, name: str, own: list[str]) -> subprocess.Popen:
    run = arguments.work / name
    command = [sys.executable, "-m", "grlo_lite.train"]
    command += ["--resume"] if (run / "recipe.yaml").is_file() else [RECIPE, *overrides(arguments), *own]
    with (arguments.work / f"{name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            [*command, "--run-dir", str(run)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


# --- 3. Both judges on the same answers ------------------------------------------------------------------------------


def heldout_answers(run: Path, count: int) -> dict[str, list[str]]:
    """Both arms' answers to the prompts that the run kept out, in their order, from its closing measurement."""
    said = {arm: [""] * count for arm in ("base", "tuned")}
    for line in (run / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["task"] == "heldout-chat":
            said[row["arm"]][int(row["question"])] = row["text"]
    return said


def shown_answers(run: Path) -> dict[str, list[str]]:
    """Both arms' answers of a finished run to the shown prompts, sampled as in training; kept in its folder."""
    from grlo_lite.generation.answers import rows_at_once, sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import chat_template, trained_adapter

    path = run / "shown-answers.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    policy = trained_adapter.load(trained_adapter.find(run, None))
    recipe = recipe_of_run(run)
    at_once, sampling = rows_at_once(policy.model, recipe.rollout.batch), Sampling(recipe.rollout.max_tokens)
    texts = [chat_template.formatted(policy.tokenizer, [{"role": "user", "content": prompt}]) for prompt in SHOWN]
    said = {}
    for arm in ("base", "tuned"):
        with policy.model.disable_adapter() if arm == "base" else nullcontext():
            said[arm] = [a.text for a in sampled_answers(policy, texts, sampling, at_once, recipe.seed)]
    path.write_text(json.dumps(said, ensure_ascii=False, indent=1), encoding="utf-8")
    return said


def recipe_of_run(run: Path) -> Any:
    from grlo_lite.recipe import loading

    return loading.load(str(run / "recipe.yaml"), [])


def heldout_rows(run: Path) -> list[list[dict[str, str]]]:
    """The prompts that the run kept out of its training."""
    from grlo_lite.prompts import prepared

    return prepared.prompt_rows(recipe_of_run(run)).heldout


def judge(folder: Path) -> Any:
    import torch

    from grlo_lite.models import reward_model
    from grlo_lite.recipe.schema import Judge

    return reward_model.load(Judge(name=str(folder), quantization="none"), torch.device("cpu"), 512, "auto", "auto")


def differences(judges: dict[str, Any], rows: list[Any], said: dict[str, list[str]]) -> dict[str, Any]:
    """Each judge's paired difference, tuned less base, over the same answers."""
    import numpy as np

    from grlo_lite.evaluation.paired_statistics import paired_difference

    found = {}
    for label, model in judges.items():
        scores = {
            arm: np.array(
                model.score([[*p, {"role": "assistant", "content": a}] for p, a in zip(rows, texts, strict=True)])
            )
            for arm, texts in said.items()
        }
        found[label] = asdict(paired_difference(scores["base"], scores["tuned"]))
    return found


def learnt(arguments: argparse.Namespace, known: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The content of the JSON, and the page of the docs."""
    from grlo_lite.machine import versions

    trained(arguments)
    judges = {label: judge(arguments.work / f"judge-{label}") for label in ("trained", "heldout")}
    runs: dict[str, Any] = {}
    for name in runs_of(arguments):
        run = arguments.work / name
        rows = heldout_rows(run)
        runs[name] = differences(judges, rows, heldout_answers(run, len(rows))) | facts_of_run(run)
    shown = shown_answers(arguments.work / "seed-0")
    result = {
        "cpu": cpu_name(),
        "versions": versions.versions(),
        "settings": [*SETTINGS, *arguments.override],
        "judges": known,
        "bar": BAR,
        "runs": runs,
        "shown": [{"prompt": p, **{arm: shown[arm][i] for arm in shown}} for i, p in enumerate(SHOWN)],
    }
    page = f"{table(result)}\n\n{pairs_shown(result['shown'])}"
    (arguments.work / "page.md").write_text(page, encoding="utf-8")
    return result, page


def facts_of_run(run: Path) -> dict[str, Any]:
    """Of a finished run: steps, time, first and last metrics, and what the guards said."""

    def lines(name: str) -> list[dict[str, Any]]:
        path = run / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    metrics, summary = lines("metrics.jsonl"), json.loads((run / "summary.json").read_text())
    followed = ("score_mean", "truncated_fraction", "completion_tokens_mean", "repetition_fraction", "entropy")
    return {
        "steps": summary["steps"],
        "minutes": summary["wall_seconds"] / 60,
        "first": {key: metrics[0][key] for key in followed},
        "last": {key: metrics[-1][key] for key in followed},
        "guards": [{key: v for key, v in line.items() if key != "samples"} for line in lines("guards.jsonl")],
    }


# --- 4. An unfinished answer, its turn closed or left open -----------------------------------------------------------


def closed_or_open(arguments: argparse.Namespace) -> dict[str, Any]:
    """How well each judge's scores of unfinished answers foretell its scores of the finished ones.

    The test pairs' answers are cut after 64 tokens and scored with the turn closed, as the template does it, and left
    open: the rank agreement with the whole answer's score, and the share of pairs still in the right order.
    """

    rows = real_models.pairs(arguments.data, "test")
    found = {}
    for label in ("trained", "heldout"):
        model = judge(arguments.work / f"judge-{label}")
        answers = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
        cut = [(p, real_models.first_tokens(model.tokenizer, a, 64)) for p, a in answers]
        whole = model.score([real_models.conversation(*pair) for pair in answers])
        closed = model.score([real_models.conversation(*pair) for pair in cut])
        opened = open_scores(model, cut)
        half, cut_short = len(rows), [c != a for c, a in zip(cut, answers, strict=True)]
        both = [i for i in range(half) if cut_short[i] and cut_short[half + i]]
        found[label] = {"answers": sum(cut_short), "pairs": len(both)}
        for name, scores in (("whole", whole), ("closed", closed), ("open", opened)):
            kept = [(scores[i], whole[i]) for i in range(len(answers)) if cut_short[i]]
            found[label][name] = {
                "spearman_with_whole": spearman([a for a, _ in kept], [b for _, b in kept]),
                "pairs_in_order": sum(scores[i] > scores[half + i] for i in both) / len(both),
                "mean": sum(s for s, _ in kept) / len(kept),
            }
    return found


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    found: Any = spearmanr(a, b)
    return float(found.statistic)


def open_scores(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    """Scores of conversations whose last turn is not closed."""
    import torch

    rows = [tuple(model.token_ids(real_models.conversation(*pair))[:-1]) for pair in pairs]  # the end of the turn
    with torch.inference_mode():
        scores = model._scores_by_row(sorted(set(rows), key=lambda row: (len(row), row)))
    return [scores[row] for row in rows]


# --- What is printed -------------------------------------------------------------------------------------------------


def speed_command(arguments: argparse.Namespace) -> list[str]:
    """This script again, for one side of the comparison."""
    given = ["--data", str(arguments.data), "--prompts", str(arguments.prompts), "--work", str(arguments.work)]
    return [sys.executable, __file__, *given, *arguments.override]


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a run, what each judge says of the same answers, and what the guards said."""
    lines = ["| judge | asked about | preference pairs in order | two other answers | real before the policy's own |"]
    lines.append("| --- " * 5 + "|")
    for name, known in result["judges"].items():
        of = known["in_order"]
        asked = f"{known['pairs']} pairs of {known['prompts']} prompts"
        lines.append(f"| {name} | {asked} | {of['given']:.3f} | {of['others']:.3f} | {of['own']:.3f} |")
    lines += [
        "",
        "| run | the trained judge, base → tuned | difference [95 %] | the held-out judge's difference [95 %] ",
    ]
    lines[-1] += "| truncated, first → last step | tokens | entropy | minutes | guards |"
    lines.append("| --- " * 9 + "|")
    for name, run in result["runs"].items():
        of, other, first, last = run["trained"], run["heldout"], run["first"], run["last"]
        said = ", ".join(dict.fromkeys(str(line.get("guard", line)) for line in run["guards"])) or "silent"
        lines.append(
            f"| {name} | {of['base']:+.2f} → {of['tuned']:+.2f} | {interval(of)} | {interval(other)} "
            f"| {first['truncated_fraction']:.2f} → {last['truncated_fraction']:.2f} "
            f"| {first['completion_tokens_mean']:.0f} → {last['completion_tokens_mean']:.0f} "
            f"| {first['entropy']:.2f} → {last['entropy']:.2f} | {run['minutes']:.0f} | {said} |"
        )
    return "\n".join(lines)


def interval(found: dict[str, float]) -> str:
    return f"{found['difference']:+.2f} [{found['ci_low']:+.2f}, {found['ci_high']:+.2f}]"


def pairs_shown(shown: list[dict[str, str]]) -> str:
    """Markdown: prompt, base and tuned answer, one after the other."""
    return "\n\n".join(
        f"**{number}. {pair['prompt']}**\n\n*base:* {quoted(pair['base'])}\n\n*tuned:* {quoted(pair['tuned'])}"
        for number, pair in enumerate(shown, 1)
    )


def quoted(text: str) -> str:
    return " ⏎ ".join(line.strip() for line in text.splitlines() if line.strip()) or "(nothing)"


if __name__ == "__main__":
    sys.exit(main())
