"""What the arms scored in lm-eval's tasks comes to: each metric paired document by document, and the groups' means."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from grlo_lite.evaluation import paired_statistics
from grlo_lite.evaluation.harness.loading import PREFIX, quiet
from grlo_lite.evaluation.harness.requests import Built, own_limit
from grlo_lite.evaluation.harness.scoring import Metric, Scored, aggregate_of, averages, scalars
from grlo_lite.evaluation.paired_statistics import PairedDifference


@dataclass
class TaskOutcome:
    """A task with what each arm scored in it."""

    task: Any
    arms: dict[str, Scored] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.task.task_name}"

    def metrics(self) -> list[Metric]:
        """Those of both arms, in the order of the YAML; the first one is the task's."""
        first, *others = self.arms.values()
        order = list(dict.fromkeys(filtered for _, filtered in first.values))
        found = [m for m in first.values if all(m in other.values for other in others)]
        return sorted(found, key=lambda metric: order.index(metric[1]))


def compared(
    outcome: TaskOutcome, metric: Metric, before: str, after: str
) -> tuple[PairedDifference | None, dict[str, Any]]:
    """`after` less `before` in one metric, paired by document, and what a row of evaluation.json says of it.

    Where the metric is a mean, over documents, as any other accuracy. One of a whole set (perplexity, MCC, BLEU) has
    a paired bootstrap, and None with the bare numbers where it can have none. Raises ValueError where the arms were
    not asked the same.
    """
    first, second = outcome.arms[before], outcome.arms[after]
    if first.hashes != second.hashes:
        raise ValueError(f"{outcome.name}: the arms were asked different documents")
    both = sorted(first.values[metric].keys() & second.values[metric].keys())
    one, other = ([arm.values[metric][i] for i in both] for arm in (first, second))
    aggregate = aggregate_of(outcome.task, metric[0])
    if len(both) >= 2 and averages(outcome.task, metric[0]) and scalars(one) and scalars(other):
        return _row(paired_statistics.paired_difference(np.array(one, float), np.array(other, float)), "mean")
    numbers = {"n": len(both), "base": float(aggregate(one)), "tuned": float(aggregate(other))}
    numbers["difference"] = numbers["tuned"] - numbers["base"]
    if len(both) < 2:
        return None, numbers | {"interval": "none: it takes two documents"}
    pair = paired_statistics.paired_bootstrap(one, other, aggregate, seed=0)
    if pair is None:
        return None, numbers | {"interval": "none: this metric is not defined on some of the resampled documents"}
    return _row(pair, "paired bootstrap")


def _row(pair: PairedDifference, interval: str) -> tuple[PairedDifference, dict[str, Any]]:
    row = asdict(pair) | {"interval": interval}
    del row["standard_error"]
    return pair, row


def headline(outcome: TaskOutcome, arm: str) -> float:
    """One arm's number in the task's first metric."""
    first = outcome.metrics()[0]
    return float(aggregate_of(outcome.task, first[0])(list(outcome.arms[arm].values[first].values())))


def row_of(outcome: TaskOutcome, metric: Metric, before: str, after: str) -> dict[str, Any]:
    """A row of evaluation.json: one metric of one task."""
    _, row = compared(outcome, metric, before, after)
    better = outcome.task.higher_is_better().get(metric[0], True)
    about = {"task": outcome.name, "domain": "lm-eval", "metric": ",".join(m for m in metric if m != "none")}
    return about | row | {"higher_is_better": bool(better if better is not None else True)}


def task_row(outcome: TaskOutcome, built: Built, plain: str, stages: list[str]) -> dict[str, Any]:
    """A task's row: its first metric, which Holm counts, the others under `also`, and how it was asked."""
    first, *others = outcome.metrics()
    row = row_of(outcome, first, "base", "tuned")
    row["also"] = [row_of(outcome, metric, "base", "tuned") for metric in others]
    for arm in (arm for arm in (plain, *stages) if arm in outcome.arms):
        against = compared(outcome, first, arm, "tuned")[1]
        kept = ("base", "difference", "ci_low", "ci_high", "p_value")
        row[f"against_{arm}"] = {name: value for name, value in against.items() if name in kept}
    task = outcome.task
    row |= {"version": task.VERSION, "num_fewshot": task.config.num_fewshot, "kind": str(task.OUTPUT_TYPE)}
    row |= {"documents_sha256": documents_sha256(outcome.arms["base"].hashes)}
    if any(request.sampling is not None for request in built.requests):
        row |= _drawn(outcome, built)
    return row


def _drawn(outcome: TaskOutcome, built: Built) -> dict[str, Any]:
    """How a task's answers were drawn: how long they may be, how many to a document, and what its YAML leaves open."""
    task, repeats = outcome.task, max(request.repeats for request in built.requests)
    longest = max(request.sampling.max_tokens for request in built.requests if request.sampling is not None)
    row: dict[str, Any] = {"max_tokens": longest, "samples": repeats}
    row["truncated"] = {arm: scored.truncated for arm, scored in outcome.arms.items()}
    if own_limit(getattr(task.config, "generation_kwargs", None) or {}) is None:
        row["limit_is_the_kits"] = f"its YAML sets no limit on an answer; {longest:,} tokens (lm-eval would take 256)"
    first = outcome.metrics()[0]
    if repeats > 1 and first not in outcome.arms["base"].averaged:
        row |= {"samples": 1, "answers_a_document": repeats}
        row["read_together"] = (
            f"its {repeats} answers to a document are read together, by {' of filter '.join(first)}; avg@, pass@ and "
            "maj@ are what it says of them itself"
        )
    return row


def documents_sha256(hashes: dict[int, str]) -> str:
    return hashlib.sha256("".join(f"{n} {hashes[n]}\n" for n in sorted(hashes)).encode()).hexdigest()


def group_rows(groups: dict[str, Any], outcomes: list[TaskOutcome]) -> list[dict[str, Any]]:
    """Each group's own mean over its tasks, as lm-eval aggregates and weighs them, of both arms; with an interval
    where all of the metric's tasks have one, their errors being independent.
    """
    by_name = {outcome.task.task_name: outcome for outcome in outcomes}
    numbers = {arm: {name: _metrics_of(o, arm) for name, o in by_name.items()} for arm in ("base", "tuned")}
    rows = []
    for group in groups.values():
        inside = [task.task_name for task in group.get_all_tasks()]
        if not group.has_aggregation or not all(name in by_name for name in inside):
            continue
        with quiet():
            base, tuned = (group.aggregate(numbers[arm]) for arm in ("base", "tuned"))
        for config in group.aggregate_metric_list:
            for metric in [m for m in base if m.startswith(f"{config.metric},")]:
                row = {"group": f"{PREFIX}{group.name}", "metric": metric.removesuffix(",none"), "tasks": len(inside)}
                row |= {"base": base[metric], "tuned": tuned[metric], "difference": tuned[metric] - base[metric]}
                rows.append(
                    row
                    | _interval([by_name[name] for name in inside], metric, config.weight_by_size, row["difference"])
                )
    return rows


def _metrics_of(outcome: TaskOutcome, arm: str) -> dict[str, Any]:
    """A task's numbers of one arm in the form that lm-eval's groups read."""
    scored = outcome.arms[arm]
    found = {
        f"{name},{filtered}": aggregate_of(outcome.task, name)(list(values.values()))
        for (name, filtered), values in scored.values.items()
    }
    return {"name": outcome.task.task_name, "sample_len": max(map(len, scored.values.values()), default=0), **found}


def _interval(outcomes: list[TaskOutcome], metric: str, weigh: bool, difference: float) -> dict[str, float]:
    name, _, filtered = metric.partition(",")
    pairs = [compared(o, (name, filtered), "base", "tuned")[0] for o in outcomes if (name, filtered) in o.metrics()]
    if any(pair is None for pair in pairs):
        return {}
    found = [pair for pair in pairs if pair is not None]
    weights = [float(pair.n if weigh else 1) for pair in found]
    error = paired_statistics.weighted_error(found, weights)
    half = 1.959964 * error
    return {"ci_low": difference - half, "ci_high": difference + half}


def answer_rows(outcome: TaskOutcome) -> list[dict[str, Any]]:
    """Rows of answers.jsonl: each document's responses with what its metrics came to, by arm."""
    rows = []
    for arm, scored in outcome.arms.items():
        for number, said in scored.said.items():
            metrics = {",".join(m): _plain(v[number]) for m, v in scored.values.items() if number in v}
            texts = [answer for row in said if isinstance(row, list) for answer in row]
            row: dict[str, Any] = {"task": outcome.name, "question": str(number), "arm": arm, "metrics": metrics}
            row["document_sha256"] = scored.hashes[number]
            if texts:
                row |= {"text": texts[0].text, "truncated": texts[0].truncated, "tokens": texts[0].tokens}
                row |= {"samples": [answer.text for answer in texts]} if len(texts) > 1 else {}
            else:
                row["log_probabilities"] = [list(row) for row in said]
            rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """A metric's value as JSON has it."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, np.number) else str(value)


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What the table has to say of lm-eval's tasks beside their numbers."""
    said = []
    for row in rows:
        said += [f"{row['task']}: {row[what]}." for what in ("limit_is_the_kits", "read_together") if what in row]
        if str(row.get("interval", "")).startswith("none"):
            said.append(f"{row['task']}: no interval, {row['interval'].removeprefix('none: ')}.")
    lower = sorted({row["metric"] for row in rows if not row.get("higher_is_better", True)})
    if lower:
        said.append(f"lower is better: {', '.join(lower)}.")
    return said
