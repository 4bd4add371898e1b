"""The ledger: each of the paper's claims, what a run shows of it, and what it cannot.

The claims are those of GRLO's abstract (arXiv 2605.15464); its tables and decoding settings are not known to this
project, so that its averages are held against none of ours.
"""

from dataclasses import dataclass
from typing import Any

from grlo_lite.reporting.html import plain
from grlo_lite.reporting.record import Record, number
from grlo_lite.wording import duration

BASELINE = (
    "nothing: that needs a run whose reward is right or wrong in a domain laid beside this one "
    "(python -m grlo_lite.report RUN RLVR_RUN)"
)


@dataclass(frozen=True)
class Entry:
    """A claim, what the run shows of it, what it cannot."""

    claim: str
    shows: str
    cannot: str


def ledger(record: Record, others: tuple[Record, ...] = ()) -> str:
    """The ledger as HTML; `others` are runs beside this one."""
    shown = "".join(
        f'<div class="entry"><p><b>{plain(one.claim)}</b></p><p><small>shown here</small>{plain(one.shows)}</p>'
        f"<p><small>not shown</small>{plain(one.cannot)}</p></div>"
        for one in entries(record, others)
    )
    source = '<p class="note">The claims are those of the abstract of GRLO, arXiv 2605.15464.</p>'
    return f'<div class="ledger">{shown}</div>{source}'


def entries(record: Record, others: tuple[Record, ...] = ()) -> list[Entry]:
    """The paper's six claims."""
    data, compute = _against_baseline(record, others)
    return [
        Entry(
            "24.1 → 63.1 on average over its domains, from Qwen3-4B-Base", _average(record), _not_the_average(record)
        ),
        Entry("from 5K prompts", _prompts(record), "Whether more prompts, or more passes over them, would bring more."),
        Entry(
            "in 22.7 GPU hours",
            _hours(record),
            "Hours on other devices, with other model sizes and lengths, are not the paper's hours.",
        ),
        Entry("46 × less data than RLVR in the domain", data, "Whether the ratio holds for other baselines and sizes."),
        Entry("68 × less compute than RLVR in the domain", compute, "As for the data; compute is counted in seconds."),
        Entry("a later RLVR stage adds only selective gains", _stages(record), "What another reward would add."),
    ]  # fmt: skip


def is_rlvr(record: Record) -> bool:
    """Whether right or wrong alone earned the reward."""
    return bool(record.key("reward.verifiable")) and not record.key("reward.name") and not record.key("reward.models")


def _average(record: Record) -> str:
    average = record.evaluation.get("average")
    if not isinstance(average, dict):
        return "nothing: no accuracy was measured"
    tasks = [task for task in record.evaluation["tasks"] if task["metric"] == "accuracy"]
    low, high = 100 * average["ci_low"], 100 * average["ci_high"]
    return (
        f"{100 * average['base']:.1f} → {100 * average['tuned']:.1f} on average over {len(tasks)} tasks of the suite "
        f"{record.evaluation.get('suite')}, from {record.key('model.name', 'a base that is not known')}: "
        f"{100 * average['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
    )


def _not_the_average(record: Record) -> str:
    said = "The paper's number: its tasks, prompts and decoding are not known here, so the two are not comparable."
    if record.key("model.name") == "microcosm":
        return f"{said} The microcosm is a made-up world: it shows how the method behaves, not what Qwen3 gains."
    trained = f"a LoRA by {str(record.key('algorithm.name', 'another algorithm')).upper()}"
    return f"{said} The paper trains all parameters by PPO on four GPUs, this run {trained}."


def _prompts(record: Record) -> str:
    count, lines = number(record.contamination.get("prompts")), record.lines
    rollouts = lines[-1].get("rollouts") if lines else None
    said = [f"{count:,} prompts"] if count is not None else []
    said += [f"{rollouts:,} rollouts (the paper's launcher comes to 61,000 to 75,000)"] if rollouts else []
    return ", ".join(said) or "nothing: how many is not known"


def _hours(record: Record) -> str:
    if record.seconds is None:
        return "nothing: the time was not recorded"
    hours, device = (
        number(record.summary.get("gpu_hours")),
        record.environment.get("device", "a device that is not known"),
    )
    if hours:
        return f"{hours:.2f} GPU hours on {device}"
    return f"{duration(record.seconds)} on {device}" + (", without a GPU" if hours == 0 else "")


def _against_baseline(record: Record, others: tuple[Record, ...]) -> tuple[str, str]:
    """Data and compute of a verifiable run beside this one, in this run's; this one must not be such a run itself."""
    baseline = next((other for other in others if is_rlvr(other)), None)
    if is_rlvr(record) or baseline is None:
        return BASELINE, BASELINE
    counts = [number(one.contamination.get("prompts")) for one in (record, baseline)]
    rollouts = [one.lines[-1].get("rollouts") if one.lines else None for one in (record, baseline)]
    seconds = [one.seconds for one in (record, baseline)]
    reached = " and ".join(_reached(one) for one in (record, baseline))
    data = ", ".join(filter(None, (_ratio("prompts", counts), _ratio("rollouts", rollouts))))
    return f"{data or 'nothing'}; at {reached}", f"{_ratio('seconds', seconds) or 'nothing'}; at {reached}"


def _reached(record: Record) -> str:
    average = record.evaluation.get("average")
    return (
        f"{100 * average['tuned']:.1f} ({record.path.name})" if isinstance(average, dict) else f"? ({record.path.name})"
    )


def _ratio(what: str, pair: list[Any]) -> str:
    ours, theirs = pair
    return f"{theirs / ours:.2g} × the {what} ({theirs:,.0f} for {ours:,.0f})" if ours and theirs else ""


def _stages(record: Record) -> str:
    arms = [arm for arm in record.evaluation.get("arms", []) if arm not in ("base", "tuned", "base_plain")]
    if not arms:
        return "nothing: this run is one stage (python -m grlo_lite.train … --from RUN goes on from another)"
    said = []
    for arm in arms:
        against = [task[f"against_{arm}"] for task in record.evaluation["tasks"] if f"against_{arm}" in task]
        gained = sum(row["ci_low"] > 0 for row in against)
        lost = sum(row["ci_high"] < 0 for row in against)
        said.append(
            f"against {arm.replace('_', ' ')}, {gained} of {len(against)} tasks gained beyond chance, {lost} lost"
        )
    return "; ".join(said)
