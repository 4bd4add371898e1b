"""What the arms' responses to lm-eval's tasks come to: its own filters and metrics, paired document by document."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from grlo_lite.evaluation import paired_statistics
from grlo_lite.evaluation.harness.arms import Response
from grlo_lite.evaluation.harness.loading import PREFIX, quiet
from grlo_lite.evaluation.harness.requests import Built, own_limit
from grlo_lite.evaluation.paired_statistics import PairedDifference
from grlo_lite.evaluation.tasks.questions import Missing

Metric = tuple[str, str]  # its name and the filter that an answer went through


@dataclass
class Scored:
    """One arm's values of each metric by document, the documents' hashes, and what was said."""

    values: dict[Metric, dict[int, Any]]
    hashes: dict[int, str]
    said: dict[int, list[Response]]
    truncated: float = 0.0


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


def scored(built: Built, responses: list[Response]) -> Scored:
    """One arm's responses through the task's filters and metrics. Raises Missing where the task cannot score them."""
    from lm_eval.utils import handle_non_serializable, hash_string

    task, by_document = built.task, {}
    for instance, response in zip(built.instances, responses, strict=True):
        instance.resps = _resps(instance, response)
        instance.filtered_resps = {}
        by_document.setdefault(instance.doc_id, []).append((instance, response))
    task._instances = built.instances
    values: dict[Metric, dict[int, Any]] = {}
    hashes, said = {}, {}
    with quiet():
        try:
            task.apply_filters()
            for number, rows in by_document.items():
                rows.sort(key=lambda row: row[0].idx)
                document = rows[0][0].doc
                hashes[number] = hash_string(_as_json(document, handle_non_serializable))
                said[number] = [response for _, response in rows]
                for filtered in rows[0][0].filtered_resps:
                    found = task.process_results(document, [i.filtered_resps[filtered] for i, _ in rows])
                    for metric, value in found.items():
                        values.setdefault((metric, filtered), {})[number] = value
        except (
            ArithmeticError,
            AttributeError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            said_of_it = " ".join(str(error).split())[:200]
            raise Missing(
                f"its answers are kept, and it cannot score them ({type(error).__name__}: {said_of_it})"
            ) from None
    answers = [answer for rows in said.values() for row in rows if isinstance(row, list) for answer in row]
    truncated = float(np.mean([answer.truncated for answer in answers])) if answers else 0.0
    return Scored(values, hashes, said, truncated)


def _resps(instance: Any, response: Response) -> list[Any]:
    """A response in lm-eval's own form, once for each repeat."""
    if isinstance(response, list):
        texts = [answer.text for answer in response]
        return texts if len(texts) == instance.repeats else texts * instance.repeats  # greedy: all alike
    value = response[0] if instance.request_type == "loglikelihood_rolling" else response
    return [value] * instance.repeats


def _as_json(document: Any, default: Callable[[Any], Any]) -> str:
    import json

    return json.dumps(document, indent=2, default=default, ensure_ascii=False)


def aggregate_of(task: Any, metric: str) -> Callable[[list[Any]], float]:
    """How a metric's values become one number: the task's own way, else the mean, as in lm-eval."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric, mean)


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
    if len(both) >= 2 and _is_mean(aggregate) and _scalars(one) and _scalars(other):
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


def _is_mean(aggregate: Any) -> bool:
    return getattr(aggregate, "__name__", "") in ("mean", "nanmean")


def _scalars(values: list[Any]) -> bool:
    return all(isinstance(v, (bool, int, float, np.number)) and np.isfinite(float(v)) for v in values)


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
    samplings = {request.sampling for request in built.requests if request.sampling is not None}
    if samplings:
        longest = max(sampling.max_tokens for sampling in samplings)
        row |= {"max_tokens": longest, "samples": max(request.repeats for request in built.requests)}
        row["truncated"] = {arm: scored.truncated for arm, scored in outcome.arms.items()}
        options = getattr(task.config, "generation_kwargs", None) or {}
        if own_limit(options) is None:
            row["limit_is_the_kits"] = (
                f"its YAML sets no limit on an answer; {longest:,} tokens (lm-eval would take 256)"
            )
    return row


def documents_sha256(hashes: dict[int, str]) -> str:
    import hashlib

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
        if "limit_is_the_kits" in row:
            said.append(f"{row['task']}: {row['limit_is_the_kits']}.")
        if str(row.get("interval", "")).startswith("none"):
            said.append(f"{row['task']}: no interval, {row['interval'].removeprefix('none: ')}.")
    lower = sorted({row["metric"] for row in rows if not row.get("higher_is_better", True)})
    if lower:
        said.append(f"lower is better: {', '.join(lower)}.")
    return said
