"""Several runs laid over each other: seeds of one recipe as a band, recipes as lines, their differences paired."""

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

from grlo_lite.reporting.charts import Band, Points, Whisker, forest, line_chart
from grlo_lite.reporting.html import html_table, note, plain
from grlo_lite.reporting.ledger import is_rlvr, ledger
from grlo_lite.reporting.record import Record, number
from grlo_lite.reporting.sections import curves_of
from grlo_lite.wording import cut, duration, numbers

Groups = dict[str, list[Record]]  # runs whose recipes differ in nothing but the seed, by what sets them apart

UNTOLD = ("seed", "logging")  # sections in which runs of one group may differ


def grouped(records: list[Record]) -> Groups:
    """The runs by their recipes without the seed, each group named by the keys in which it differs from others."""
    flat = [_flat({key: value for key, value in record.recipe.items() if key not in UNTOLD}) for record in records]
    everywhere = sorted({key for keys in flat for key in keys})
    apart = [key for key in everywhere if len({keys.get(key) for keys in flat}) > 1]
    groups: Groups = {}
    for record, keys in zip(records, flat, strict=True):
        told = ", ".join(f"{key}={keys.get(key, 'null')}" for key in apart)
        groups.setdefault(cut(told, 120) or record.name, []).append(record)
    return groups


def _flat(section: dict[str, Any], before: str = "") -> dict[str, str]:
    """The keys of nested sections as `section.key`, their values as JSON without its quotes."""
    found: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = json.dumps(value, default=str).strip('"')
    return found


def runs(groups: Groups) -> str:
    """A row a run."""
    rows = []
    for label, records in groups.items():
        for record in records:
            rewards = [line["reward_mean"] for line in record.lines if "reward_mean" in line]
            average = record.evaluation.get("average")
            told = numbers(average) if isinstance(average, dict) else ("–", "–", "–", "")
            rows.append(
                [
                    record.path.name, label, str(record.key("seed", "?")), record.state, f"{record.steps:,}",
                    f"{rewards[0]:+.2f} → {rewards[-1]:+.2f}" if rewards else "–", *told,
                    "–" if record.seconds is None else duration(record.seconds),
                ]
            )  # fmt: skip
    head = ["run", "recipe", "seed", "state", "steps", "reward", "base", "tuned", "gain", "95 % interval", "time"]
    return html_table(head, rows)


def gains(groups: Groups) -> str:
    """Each run's average gain with its interval, and over the seeds of a recipe their mean."""
    rows, untold = [], []
    for label, records in groups.items():
        measured = [record for record in records if isinstance(record.evaluation.get("average"), dict)]
        untold += [record.path.name for record in records if record not in measured]
        for record in measured:
            rows.append(_whisker(record.path.name, f"seed {record.key('seed', '?')}", record.evaluation["average"]))
        if len(measured) > 1:
            rows.append(_whisker(label, f"mean of {len(measured)} seeds", _over_seeds(measured), whole=True))
    unit = "average accuracy, tuned less base; a run's interval is over its questions, a mean's over the seeds (t)"
    left = note(f"no average was measured of {', '.join(untold)}") if untold else ""
    return forest("Gain", unit, rows) + left


def _over_seeds(records: list[Record]) -> dict[str, Any]:
    import numpy as np

    from grlo_lite.evaluation.paired_statistics import paired_difference

    averages = [record.evaluation["average"] for record in records]
    arms = [np.array([average[arm] for average in averages]) for arm in ("base", "tuned")]
    return vars(paired_difference(*arms))


def _whisker(name: str, detail: str, row: dict[str, Any], whole: bool = False) -> Whisker:
    base, tuned, difference, interval = numbers(row)
    said = f"{difference} {interval}"
    return Whisker(name, detail, f"{base} → {tuned}", row["difference"], row["ci_low"], row["ci_high"], said, whole)


def paired(groups: Groups) -> str:
    """Tuned against tuned, each recipe less the first, on the questions that all were asked."""
    (first, reference), *others = groups.items()
    if not others:
        return note("One recipe: there is none to set it against. What seeds do to it stands above.")
    shown = [_paired_table(first, reference, label, records) for label, records in others]
    said = (
        "Tuned answers to the same questions, a question's score being its mean over the samples and seeds of a recipe. "
        "The intervals are over questions (paired t); how much another seed would change is not in them. p: after Holm."
    )
    return "".join(shown) + note(said)


def _paired_table(first: str, reference: list[Record], label: str, records: list[Record]) -> str:
    import numpy as np

    from grlo_lite.evaluation.paired_statistics import holm, mean_of_differences, paired_difference

    ours, theirs = _scores(records), _scores(reference)
    pairs, left = {}, []
    for task in dict.fromkeys([*theirs, *ours]):
        common = [q for q in theirs.get(task, {}) if q in ours.get(task, {})]
        if len(common) < 2 or len({_asked(record, task) for record in [*reference, *records]}) > 1:
            left.append(task)
            continue
        arms = [np.array([scores[task][q] for q in common]) for scores in (theirs, ours)]
        pairs[task] = paired_difference(*arms)
    rows = [
        [task, f"{pair.n:,}", *numbers(vars(pair)), f"{p:.2g}"]
        for (task, pair), p in zip(pairs.items(), holm([pair.p_value for pair in pairs.values()]), strict=True)
    ]
    accurate = [pairs[task] for task in pairs if _metric(records[0], task) == "accuracy"]
    if len(accurate) > 1:
        average = mean_of_differences(accurate)
        rows.append(["average of tasks", "", *numbers(average), f"{average['p_value']:.2g}"])
    head = ["task", "questions", "first", "other", "other less first", "95 % interval", "p"]
    untold = note(f"not paired, as not all runs kept answers to the same questions: {', '.join(left)}") if left else ""
    if not pairs and not left:
        untold = note("no run kept its answers; python -m grlo_lite.evaluate RUN keeps them")
    title = f"<h4>{plain(label)} <small>against {plain(first)}</small></h4>"
    return title + (html_table(head, rows) if rows else "") + untold


def _scores(records: list[Record]) -> dict[str, dict[str, float]]:
    """By task and question the tuned answers' mean score over runs and samples; what not all runs were asked is out."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for place, record in enumerate(records):
        for row in record.answers:
            score = number(row.get("score"))
            if row.get("arm") == "tuned" and score is not None:
                by_run = found.setdefault(str(row.get("task")), {}).setdefault(
                    str(row.get("question")), [[] for _ in records]
                )
                by_run[place].append(score)
    return {
        task: {question: fmean(map(fmean, by_run)) for question, by_run in questions.items() if all(by_run)}
        for task, questions in found.items()
    }


def _task(record: Record, task: str) -> dict[str, Any]:
    return next((row for row in record.evaluation.get("tasks", []) if row["task"] == task), {})


def _metric(record: Record, task: str) -> str | None:
    return _task(record, task).get("metric")


def _asked(record: Record, task: str) -> tuple[Any, ...]:
    return tuple(_task(record, task).get(key) for key in ("questions_sha256", "samples", "max_tokens", "temperature"))


def curves(groups: Groups) -> str:
    """A chart a metric: a line for each recipe, with a band from the lowest to the highest of its seeds."""
    every = [line for records in groups.values() for record in records for line in record.lines]
    drawn = []
    for title, unit, of in curves_of(every):
        for name, key in of.items():
            lines = {label: _mean(records, key) for label, records in groups.items()}
            bands = {label: _band(records, key) for label, records in groups.items() if len(records) > 1}
            drawn.append(line_chart(f"{title}: {name}" if len(of) > 1 else title, unit, lines, bands))
    said = note("A line is the mean over a recipe's seeds, the band behind it their lowest and highest.")
    return f'<div class="charts">{"".join(drawn)}</div>{said}' if any(drawn) else note("no step has been written yet")


def _values(records: list[Record], key: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for record in records:
        for line in record.lines:
            if key in line:
                found.setdefault(line["step"], []).append(line[key])
    return dict(sorted(found.items()))


def _mean(records: list[Record], key: str) -> Points:
    return [(step, fmean(values)) for step, values in _values(records, key).items()]


def _band(records: list[Record], key: str) -> Band:
    return [(step, min(values), max(values)) for step, values in _values(records, key).items()]


def claims(groups: Groups) -> str:
    """The ledger of the first run that is no baseline, with the others beside it."""
    records = [record for group in groups.values() for record in group]
    subject = next((record for record in records if not is_rlvr(record)), records[0])
    beside = tuple(record for record in records if record is not subject)
    return note(f"Of {subject.path.name}, with the others beside it.") + ledger(subject, beside)


SECTIONS: dict[str, Callable[[Groups], str]] = {
    "Runs": runs,
    "Gains": gains,
    "Paired differences": paired,
    "Curves": curves,
    "The paper's claims": claims,
}
