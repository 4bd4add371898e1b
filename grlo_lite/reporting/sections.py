"""A run's sections as HTML, from its directory alone: what the report and the app's Run tab show.

What a directory lacks or holds damaged is said in its place; a section is a row of SECTIONS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.reporting.charts import Points, line_chart
from grlo_lite.reporting.evaluated import answers_side_by_side, base_against_tuned
from grlo_lite.reporting.guarded import guards
from grlo_lite.reporting.html import excerpt, facts_list, html_table, note, plain
from grlo_lite.reporting.ledger import ledger
from grlo_lite.reporting.record import Record, number, record_of
from grlo_lite.reporting.verdict import verdict
from grlo_lite.wording import duration

STYLE = Path(__file__).parent / "sections.css"  # of what stands below; its colours are the page's


# A chart's title, its unit, and the metrics in it by their names in the legend
CURVES: list[tuple[str, str, dict[str, str]]] = [
    ("Reward", "mean over a step", {"trained on": "reward_mean", "raw score": "score_mean"}),
    (
        "Held-out judge", "mean score on fixed prompts",
        {"held out": "reward_heldout_mean", "trained on": "reward_fixed_mean"},
    ),
    ("Length", "tokens a completion", {"mean": "completion_tokens_mean"}),
    ("Truncated", "share of completions cut at their length", {"share": "truncated_fraction"}),
    ("Entropy", "nats a token", {"mean": "entropy"}),
    ("Gradient", "norm before it is clipped", {"norm": "grad_norm"}),
    ("Value loss", "of the critic", {"loss": "value_loss"}),
    ("Explained variance", "share of the returns' variance, by PPO's critic", {"share": "explained_variance"}),
    ("Divergence from the reference", "KL, nats a token", {"mean": "kl"}),
    ("Repetition", "share of 4-grams that occurred before", {"share": "repetition_fraction"}),
    ("Seconds a step", "by phase", {phase: f"{phase}_seconds" for phase in ("rollout", "reward", "update")}),
]  # fmt: skip


MADE_WITH = ("torch", "transformers", "trl", "peft", "unsloth")


DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what reading a wrong shape raises


def curves_of(lines: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, str]]]:
    """CURVES, and behind the reward a chart of what each kind of shaping added and one of each source's score."""
    seen = dict.fromkeys(key for line in lines for key in line)
    apart = ("reward_mean", "reward_heldout_mean", "reward_fixed_mean")
    parts = {
        key.removeprefix("reward_").removesuffix("_mean"): key
        for key in seen
        if key.startswith("reward_") and key.endswith("_mean") and key not in apart
    }
    sources = {key.partition("/")[2]: key for key in seen if key.startswith("score_mean/")}
    used = {name: key for name, key in parts.items() if any(line.get(key) for line in lines)}
    more = [
        ("Shaping", "what each part added to the raw score", used),
        ("Sources of the score", "each one's mean", sources),
    ]
    return [CURVES[0], *more, *CURVES[1:]]


def curves(record: Record) -> str:
    """The charts of metrics.jsonl."""

    def points(key: str) -> Points:
        return [(line["step"], line[key]) for line in record.lines if key in line]

    def series(of: dict[str, str]) -> dict[str, Points]:
        found = {name: points(key) for name, key in of.items()}
        raw = found.get("raw score")
        return {name: drawn for name, drawn in found.items() if drawn is not raw or raw != found.get("trained on")}

    drawn = [line_chart(title, unit, series(of)) for title, unit, of in curves_of(record.lines)]
    many = note("Thin: each step. Thick: the mean of the steps around it.") if "raw" in "".join(drawn) else ""
    return f'<div class="charts">{"".join(drawn)}</div>{many}' if any(drawn) else note("no step has been written yet")


def facts(record: Record) -> str:
    """What was run, on what."""
    key, said = record.key, record.environment
    adapter = f"rank {key('lora.rank', '?')}, alpha {key('lora.alpha', '?')}, {key('lora.targets', '?')}"
    if key("model.adapter"):
        adapter += f"; went on from {key('model.adapter')}"
    algorithm = f"{str(key('algorithm.name', '?')).upper()}, learning rate {key('optimizer.learning_rate', '?')}"
    updates = key("algorithm.updates_per_rollout", 1)
    batch = f"{key('rollout.batch', '?')} completions a step in groups of {key('rollout.group_size', '?')}"
    versions = said.get("versions") or {}
    rows = {
        "recipe": record.name,
        "base": f"{key('model.name', 'not known')} ({key('model.quantization', '?')})",
        "adapter": adapter,
        "reward": record.reward + (", shuffled (a control)" if key("reward.shuffle") else ""),
        "algorithm": f"{algorithm}, {updates} update{'s' if updates != 1 else ''} a rollout",
        "rollouts": f"{batch}, at most {key('rollout.max_tokens', '?')} tokens",
        "seed": key("seed", said.get("seed", "not known")),
        "device": " ".join(str(said[name]) for name in ("device", "driver") if said.get(name)),
        "backend": said.get("backend"),
        "made with": ", ".join(f"{name} {versions[name]}" for name in MADE_WITH if name in versions),
        "commit": str(said.get("git_commit") or "")[:12],
        "adapter's SHA-256": str(record.summary.get("adapter_sha256") or "")[:16],
    }  # fmt: skip
    return facts_list({name: str(value) for name, value in rows.items() if value not in (None, "")})


def prompts(record: Record) -> str:
    """The prompts of training, and what of them a benchmark asks as well."""
    found = record.contamination
    source = record.key("prompts.source", "not known")
    if isinstance(source, list):
        source = ", ".join(str(part.get("source", part)) if isinstance(part, dict) else str(part) for part in source)
    rows = {
        "source": str(source),
        "prompts": f"{found['prompts']:,}" if "prompts" in found else "",
        "left out, as a benchmark asks them": f"{found['dropped']:,}" if "dropped" in found else "",
        "SHA-256": str(record.environment.get("prompts_sha256") or "")[:16],
    }
    shown = facts_list({name: value for name, value in rows.items() if value})
    if not found:
        return shown + note("whether the prompts were checked against the benchmarks is not known")
    checked = [[one["set"], f"{one['questions']:,}", f"{one['hits']:,}"] for one in found.get("checked", [])]
    said = (
        f"A prompt counts as a benchmark's where it shares {found.get('ngram', '?')} words in a row with one of its "
        f"questions, or where the letters of both are as alike as {found.get('similarity', '?')}."
    )
    shown += html_table(["compared with", "questions", "prompts that match"], checked) + note(said) if checked else ""
    unchecked = [str(one.get("set", one) if isinstance(one, dict) else one) for one in found.get("unchecked", [])]
    return shown + (note(f"not compared with: {', '.join(unchecked)}", "warned") if unchecked else "")


def time_and_cost(record: Record) -> str:
    """How long the run took and what it cost, beside the plan."""
    if record.seconds is None:
        return note("no step has been written yet")
    plan = record.summary.get("plan") or {}
    rows = [
        [
            key.replace("_seconds", ", seconds a step").replace("peak_vram_gib", "peak memory, GiB"),
            f"{row['planned']:.2f}", f"{row['measured']:.2f}", _times(row["measured"], row["planned"]),
        ]
        for key, row in plan.items()
    ]  # fmt: skip
    phases = [row["planned"] for key, row in plan.items() if key.endswith("_seconds")]
    price = number(record.key("budget.usd_per_hour"))
    if phases and record.steps:
        planned = sum(phases) * record.steps
        rows.append(
            [f"{record.steps:,} steps", duration(planned), duration(record.seconds), _times(record.seconds, planned)]
        )
        if price:
            cost = record.seconds / 3600 * price
            rows.append(
                ["dollars", f"{planned / 3600 * price:.2f}", f"{cost:.2f}", _times(cost, planned / 3600 * price)]
            )
    hours, usd = number(record.summary.get("gpu_hours")), number(record.summary.get("cost_usd"))
    tokens = record.summary.get("generated_tokens") or (
        record.lines[-1].get("generated_tokens") if record.lines else None
    )
    told = {
        "wall time": duration(record.seconds),
        "GPU hours": "none, without a GPU" if hours == 0 else f"{hours:.2f}" if hours is not None else "",
        "cost": f"${usd:.2f}" if usd is not None else "",
        "steps": f"{record.steps:,}" + (f" of {record.planned_steps:,}" if record.planned_steps else ""),
        "rollouts": f"{record.lines[-1]['rollouts']:,}" if record.lines and "rollouts" in record.lines[-1] else "",
        "tokens written": f"{tokens:,}" if tokens else "",
        "stopped because of": str(record.summary.get("stopped_because") or ""),
        "halved for memory": ", ".join(map(str, record.summary.get("out_of_memory") or [])),
    }
    table = html_table(["", "planned", "measured", "measured / planned"], rows) if rows else note("the run had no plan")
    return facts_list({name: value for name, value in told.items() if value}) + table


def first_and_last_samples(record: Record, most: int = 3) -> str:
    """What was said at the first step that was kept and at the last, side by side."""
    steps = sorted({row["step"] for row in record.samples})
    if not steps:
        return note("no samples of training were kept")
    columns = [_sample_cards(record, step, most) for step in dict.fromkeys((steps[0], steps[-1]))]
    return f'<div class="two">{"".join(columns)}</div>'


def _sample_cards(record: Record, step: int, most: int) -> str:
    cards = "".join(_sample(row) for row in [row for row in record.samples if row["step"] == step][:most])
    return f"<div><h4>Step {step}</h4>{cards}</div>"


def _sample(row: dict[str, Any]) -> str:
    told = [f"reward {row['reward']:+.2f}", f"{row['length']} tokens"] + ["truncated"] * row["cut"]
    return (
        f'<article class="sample"><p class="asked" dir="auto">{excerpt(row["prompt"])}</p>'
        f'<p class="said" dir="auto">{excerpt(row["completion"])}</p>'
        f'<p class="told">{plain(" · ".join(told))}</p></article>'
    )


def _times(measured: float, planned: float) -> str:
    return f"{measured / planned:.2f}" if planned else "–"


# A section by its title, in the page's order
SECTIONS: dict[str, Callable[[Record], str]] = {
    "Base against tuned": base_against_tuned,
    "What was run": facts,
    "Curves": curves,
    "Guards": guards,
    "Ten answers": answers_side_by_side,
    "Prompts": prompts,
    "Time and cost": time_and_cost,
    "The paper's claims": ledger,
}


def shown(record: Record, section: Callable[[Record], str]) -> str:
    """A section's HTML, or where its files are not what a run writes, a line that says so."""
    try:
        return section(record)
    except DAMAGE as error:
        return note(damaged(str(record.where), error), "refused")


def damaged(where: str, error: Exception) -> str:
    """What to say of a file whose content has another shape than a run writes."""
    said = f"{type(error).__name__}: {error}"
    return f"a file of {where} is not what a run writes ({said}); restore it from a copy"


def lead(record: Record) -> str:
    """The verdict."""
    return "".join(f'<p class="verdict">{plain(sentence)}</p>' for sentence in verdict(record))


def overview(path: Path) -> str:
    """The run as HTML. What the directory lacks or holds damaged is said in its place."""
    try:
        record = record_of(path)
    except BadInput:
        return note(f"{path} is an adapter without its run; name the run directory to see how it was trained")
    sections = [f"<h3>{plain(title)}</h3>{shown(record, section)}" for title, section in SECTIONS.items()]
    return "\n".join([shown(record, lead), missing(record), *sections])


def missing(record: Record) -> str:
    """What the directory lacks, a line each."""
    return "".join(note(said, "missing") for said in record.missing)


def sampled_steps(path: Path) -> list[int]:
    """The steps of which there are samples, in order."""
    return sorted({row["step"] for row in Record(path).samples})


def samples(path: Path, step: int) -> str:
    """What was said at a step, as HTML."""
    cards = "".join(_sample(row) for row in Record(path).samples if row["step"] == step)
    return f'<div class="samples">{cards}</div>' if cards else note("there are no samples of this step")


def example_prompts(path: Path, most: int = 6) -> list[str]:
    """Prompts of a run to begin with: short ones, each once, the newest first."""
    prompts = [row["prompt"] for row in reversed(Record(path).samples)]
    return [prompt for prompt in dict.fromkeys(prompts) if len(prompt) <= 160][:most]
