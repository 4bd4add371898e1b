"""The tab about a run, from its directory alone: curves, what was said as it learnt, its evaluation, its cost."""

import json
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.recipe import loading as recipes
from grlo_lite.reporting.charts import line_chart
from grlo_lite.reporting.html import html_table, note, plain
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import duration, numbers

CURVES: list[tuple[str, str, dict[str, str]]] = [
    ("Reward", "mean over a step", {"trained on": "reward_mean", "held out": "reward_heldout_mean"}),
    ("Length", "tokens a completion", {"mean": "completion_tokens_mean"}),
    ("Truncated", "share of completions cut at their length", {"share": "truncated_fraction"}),
    ("Entropy", "nats a token", {"mean": "entropy"}),
    ("Critic", "share of the returns' variance that PPO's critic explains", {"explained": "explained_variance"}),
]  # fmt: skip


DAMAGE = (KeyError, TypeError, ValueError, AttributeError)  # what reading a file of the wrong shape raises


def overview(path: Path) -> str:
    """The run as HTML. What the directory lacks or holds damaged is said in its place."""
    run = RunDir(path)
    if not run.recipe.is_file():
        return note(f"{path} is an adapter without its run; name the run directory to see how it was trained")
    parts = (_facts, _curves, _evaluation, _plan)
    shown = []
    for part in parts:
        try:
            shown.append(part(run))
        except BadInput as error:
            shown.append(note(str(error), "refused"))
        except DAMAGE as error:
            said = f"{type(error).__name__}: {error}"
            shown.append(note(f"a file of {path} is not what a run writes ({said}); restore it from a copy", "refused"))
    return "\n".join(shown)


def sampled_steps(path: Path) -> list[int]:
    """The steps of which there are samples, in order."""
    return sorted({row["step"] for row in _samples(path)})


def samples(path: Path, step: int) -> str:
    """What was said at a step, as HTML."""
    rows = [row for row in _samples(path) if row["step"] == step]
    cards = []
    for row in rows:
        facts = [f"reward {row['reward']:+.2f}", f"{row['length']} tokens"] + ["truncated"] * row["cut"]
        cards.append(
            f'<article class="sample"><p class="asked">{plain(row["prompt"])}</p>'
            f'<p class="said">{plain(row["completion"])}</p><p class="facts">{plain(" · ".join(facts))}</p></article>'
        )
    return f'<div class="samples">{"".join(cards)}</div>' if cards else note("there are no samples of this step")


def example_prompts(path: Path, most: int = 6) -> list[str]:
    """Prompts of a run to begin with: short ones, each once, the newest first."""
    prompts = [row["prompt"] for row in reversed(_samples(path))]
    return [prompt for prompt in dict.fromkeys(prompts) if len(prompt) <= 160][:most]


def _samples(path: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl that are whole; others are no reason to show none."""
    try:
        lines = RunDir(path).samples.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            kept = {"step": int(row["step"]), "reward": float(row["reward"]), "length": int(row["length"])}
            rows.append(
                kept | {key: str(row[key]) for key in ("prompt", "completion")} | {"cut": bool(row["truncated"])}
            )
        except DAMAGE:
            continue
    return rows


def _facts(run: RunDir) -> str:
    if not run.finished:
        return note(f"the run is unfinished; go on with python -m grlo_lite.train --run-dir {run.path} --resume")
    summary, environment = files.read_json(run.summary), files.read_json(run.environment)
    recipe = recipes.load(str(run.recipe), [])
    cards = {
        "recipe": summary["recipe"],
        "base": recipe.model.name,
        "trained by": recipe.reward.said,
        "steps": f"{summary['steps']:,}, {summary['rollouts']:,} rollouts",
        "reward": f"{summary['reward_first']:+.2f} → {summary['reward_last']:+.2f}",
        "on": str(environment["device"]),
        "stopped because of": str(summary["stopped_because"]),
    }
    facts = "".join(f"<div><dt>{plain(name)}</dt><dd>{plain(value)}</dd></div>" for name, value in cards.items())
    return f'<dl class="facts">{facts}</dl>'


def _curves(run: RunDir) -> str:
    lines = files.read_lines(run.metrics)

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in lines if key in line]

    charts = [line_chart(title, unit, {name: points(key) for name, key in of.items()}) for title, unit, of in CURVES]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else note("no step has been written yet")


def _evaluation(run: RunDir) -> str:
    if not run.evaluation.is_file():
        return note(f"not evaluated yet: python -m grlo_lite.evaluate {run.path}")
    found = files.read_json(run.evaluation)
    rows = [
        [f"{task['task']} ({task['metric'].replace('_', ' ')})", f"{task['n']:,}", *numbers(task)]
        for task in found["tasks"]
    ]
    if "average" in found:
        rows.append(["average accuracy", "", *numbers(found["average"])])
    head = ["task", "questions", "base", "tuned", "difference", "95 % interval"]
    return f"<h3>Base against tuned, suite {plain(str(found['suite']))}</h3>" + html_table(head, rows)


def _plan(run: RunDir) -> str:
    """What the plan said that a step takes, beside what it took."""
    if not run.finished:
        return ""
    summary = files.read_json(run.summary)
    compared = summary.get("plan", {})
    rows = [[key.replace("_", " "), f"{row['planned']:.2f}", f"{row['measured']:.2f}"] for key, row in compared.items()]
    took = note(f"{duration(summary['wall_seconds'])} in all")
    return (
        f"<h3>The plan and what a step took</h3>{html_table(['', 'planned', 'measured'], rows)}{took}" if rows else took
    )
