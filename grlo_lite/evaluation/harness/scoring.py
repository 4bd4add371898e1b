"""An arm's responses through a task's own filters and metrics: a value of each metric for each document."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grlo_lite.evaluation.harness.arms import Response
from grlo_lite.evaluation.harness.loading import quiet
from grlo_lite.evaluation.harness.requests import Built
from grlo_lite.evaluation.paired_statistics import majority, pass_at
from grlo_lite.evaluation.tasks.questions import Missing

Metric = tuple[str, str]  # its name and the filter that an answer went through
Documents = dict[int, list[tuple[Any, Response]]]  # each one's instances of lm-eval with the responses to them
RAISED = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
    ValueError,
)  # by tasks whose code does not go with what was said  # fmt: skip


@dataclass
class Scored:
    """One arm's values of each metric by document, the documents' hashes, and what was said. `averaged` are the metrics
    whose values are means over several answers to a document.
    """

    values: dict[Metric, dict[int, Any]]
    hashes: dict[int, str]
    said: dict[int, list[Response]]
    truncated: float = 0.0
    averaged: set[Metric] = field(default_factory=set)


def scored(built: Built, responses: list[Response]) -> Scored:
    """One arm's responses through the task's filters and metrics. Raises Missing where the task cannot score them."""
    from lm_eval.utils import handle_non_serializable, hash_string

    documents: Documents = {}
    for instance, response in zip(built.instances, responses, strict=True):
        documents.setdefault(instance.doc_id, []).append((instance, response))
    for rows in documents.values():
        rows.sort(key=lambda row: row[0].idx)
    found = Scored({}, {}, {number: [response for _, response in rows] for number, rows in documents.items()})
    with quiet():
        try:
            for filtering in built.task._filters:
                _add_values(found, built.task, filtering, documents)
            for number, rows in documents.items():
                as_json = json.dumps(rows[0][0].doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
                found.hashes[number] = hash_string(as_json)
        except RAISED as error:
            told = " ".join(str(error).split())[:200]
            raise Missing(f"its answers are kept, and it cannot score them ({type(error).__name__}: {told})") from None
    answers = [answer for rows in found.said.values() for row in rows if isinstance(row, list) for answer in row]
    found.truncated = float(np.mean([answer.truncated for answer in answers])) if answers else 0.0
    return found


def _add_values(found: Scored, task: Any, filtering: Any, documents: Documents) -> None:
    """The values behind one of the task's filters: of all of a document's answers together, as lm-eval has it, or,
    where there are several and the filter would read the first alone, of each, which are then put together.
    """
    samples = max(len(r) if isinstance(r, list) else 1 for rows in documents.values() for _, r in rows)
    each = samples > 1 and reads_one(filtering)
    values: dict[str, dict[int, list[Any]]] = {}
    read: dict[int, list[Any]] = {}
    for sample in range(samples) if each else (None,):
        for instance, response in (row for rows in documents.values() for row in rows):
            instance.resps, instance.filtered_resps = _resps(instance, response, sample), {}
        filtering.apply([instance for rows in documents.values() for instance, _ in rows])
        for number, rows in documents.items():
            filtered = [instance.filtered_resps[filtering.name] for instance, _ in rows]
            read.setdefault(number, []).append(filtered[0])
            for metric, value in task.process_results(rows[0][0].doc, filtered).items():
                values.setdefault(metric, {}).setdefault(number, []).append(value)
    for metric, by_document in values.items():
        found.values[metric, filtering.name] = {number: said[0] for number, said in by_document.items()}
        if each and averages(task, metric) and all(map(scalars, by_document.values())):
            found.averaged.add((metric, filtering.name))
            extracts = len(filtering.filters) > 1
            together = several(metric, by_document, read if extracts else None, task.higher_is_better().get(metric))
            found.values |= {(name, filtering.name): worth for name, worth in together.items()}


def several(
    metric: str, by_document: dict[int, list[float]], read: dict[int, list[Any]] | None, higher: bool | None
) -> dict[str, dict[int, float]]:
    """What several answers to a document are worth: their mean, and of a metric of right and wrong the chance that any
    is right, and that the most frequent one is, where a filter `read` an answer out of each text.
    """
    found = {metric: {number: float(np.mean(values)) for number, values in by_document.items()}}
    k = len(next(iter(by_document.values())))
    if higher is False or not all(value in (0, 1) for values in by_document.values() for value in values):
        return found
    found[f"{metric} pass@{k}"] = {n: pass_at(k, k, round(sum(values))) for n, values in by_document.items()}
    if read is not None:
        said = {n: ["" if answer in ("[invalid]", None) else str(answer) for answer in read[n]] for n in by_document}
        found[f"{metric} maj@{k}"] = {n: majority(said[n], values) for n, values in by_document.items()}
    return found


def reads_one(filtering: Any) -> bool:
    """Whether a filter of lm-eval takes one answer to a document and goes by nothing but that."""
    from lm_eval.filters.selection import MajorityVoteFilter, TakeFirstFilter, TakeKFilter

    steps = [getattr(step, "func", step) for step in filtering.filters]
    return steps[-1] is TakeFirstFilter and not {MajorityVoteFilter, TakeKFilter} & set(steps)


def _resps(instance: Any, response: Response, sample: int | None) -> list[Any]:
    """A response in lm-eval's own form, once for each repeat; or one of several answers alone."""
    if isinstance(response, list):
        texts = [answer.text for answer in response]
        if sample is not None:
            return texts[sample : sample + 1]
        return texts * instance.repeats if len(texts) == 1 else texts  # greedy: all alike
    value = response[0] if instance.request_type == "loglikelihood_rolling" else response
    return [value] * instance.repeats


def aggregate_of(task: Any, metric: str) -> Callable[[list[Any]], float]:
    """How a metric's values become one number: the task's own way, else the mean, as in lm-eval."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric, mean)


def averages(task: Any, metric: str) -> bool:
    """Whether a metric's number is the mean of its values."""
    return getattr(aggregate_of(task, metric), "__name__", "") in ("mean", "nanmean")


def scalars(values: list[Any]) -> bool:
    """Whether all values are finite numbers."""
    return all(isinstance(v, (bool, int, float, np.number)) and np.isfinite(float(v)) for v in values)
