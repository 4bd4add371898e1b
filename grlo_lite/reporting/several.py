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

ASKED = ("questions_sha256", "samples", "max_tokens", "temperature")  # of a task in evaluation.json


NAME = "recipe"  # the recipe's name among its keys


UNTOLD = ("seed", "logging")  # sections in which runs of one group may differ


def grouped(records: list[Record]) -> Groups:
    """The runs by their recipes without the seed, each group named by as few keys as tell it from the others."""
    every = [_keys(record) for record in records]
    named = _telling(every)
    groups: dict[str, Groups] = {}
    for record, keys in zip(records, every, strict=True):
        told = [keys[key] if key == NAME else f"{key}={keys.get(key, 'null')}" for key in named]
        groups.setdefault(repr(keys), {}).setdefault(cut(", ".join(told), 100), []).append(record)
    merged: Groups = {}
    for place, group in enumerate(groups.values(), 1):
        ((label, members),) = group.items()
        merged[label if label not in merged else f"{label} ({place})"] = members
    return merged


def _telling(every: list[dict[str, str]]) -> list[str]:
    """The recipe's name, and of the keys in which recipes differ one after the other that tells the most apart."""
    named, wanted = [NAME], len({repr(keys) for keys in every})

    def told(keys: list[str]) -> int:
        return len({tuple(one.get(key) for key in keys) for one in every})

    apart = sorted({key for keys in every for key in keys}, key=lambda key: (len(key), key))
    while told(named) < wanted:
        named.append(max(apart, key=lambda key: told([*named, key])))
    return named


def _keys(record: Record) -> dict[str, str]:
    recipe = {key: value for key, value in record.recipe.items() if key not in UNTOLD}
    return {NAME: record.name, **_flat(recipe)}


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
            base, tuned, gain, _ = numbers(average) if isinstance(average, dict) else ("–",) * 4
            rows.append(
                [
                    record.path.name, label, str(record.key("seed", "?")), record.state, f"{record.steps:,}",
                    f"{rewards[0]:+.2f} → {rewards[-1]:+.2f}" if rewards else "–",
                    f"{base} → {tuned}", gain,
                    "–" if record.seconds is None else duration(record.seconds),
                ]
            )  # fmt: skip
    head = ["run", "recipe", "seed", "state", "steps", "reward", "base and tuned", "gain", "time"]
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


def apart(groups: Groups) -> str:
    """The keys in which the recipes differ, a row each."""
    if len(groups) < 2:
        return note("The runs have one recipe, and differ in their seeds.")
    every = [_keys(records[0]) for records in groups.values()]
    keys = [
        key for key in dict.fromkeys(key for one in every for key in one) if len({one.get(key) for one in every}) > 1
    ]
    return html_table(["", *groups], [[key, *(cut(one.get(key, "–"), 60) for one in every)] for key in keys])


def paired(groups: Groups) -> str:
    """Tuned against tuned, each recipe less the first, on the questions that both were asked."""
    (first, reference), *others = groups.items()
    if not others:
        return note("One recipe: there is none to set it against. What seeds do to it stands above.")
    shown = [_paired_table(first, reference, label, records) for label, records in others]
    said = (
        "Tuned answers to the same questions; a question's score is its mean over the samples and runs of a recipe. "
        "The intervals are over questions (t); how much other seeds would change is not in them. p: after Holm."
    )
    return "".join(shown) + note(said)


def _paired_table(first: str, reference: list[Record], label: str, records: list[Record]) -> str:
    import numpy as np

    from grlo_lite.evaluation.paired_statistics import holm, mean_of_differences, paired_difference

    theirs, ours = _scores(reference), _scores(records)
    pairs, left = {}, []
    for task in dict.fromkeys([*theirs, *ours]):
        common = [question for question in theirs.get(task, {}) if question in ours.get(task, {})]
        if len(common) > 1:
            pairs[task] = paired_difference(*(np.array([arm[task][q] for q in common]) for arm in (theirs, ours)))
        else:
            left.append(task)
    adjusted = holm([pair.p_value for pair in pairs.values()]) if pairs else []
    rows = [
        [task[0], f"{pair.n:,}", *numbers(vars(pair)), f"{p:.2g}"]
        for (task, pair), p in zip(pairs.items(), adjusted, strict=True)
    ]
    accurate = [pair for (_, metric), pair in pairs.items() if metric == "accuracy"]
    if len(accurate) > 1:
        average = mean_of_differences(accurate)
        rows.append(["average of tasks", "", *numbers(average), f"{average['p_value']:.2g}"])
    head = ["task", "questions", "first", "other", "other less first", "95 % interval", "p"]
    untold = (
        note(f"not paired, for they were not asked the same: {', '.join(name for name, _ in left)}") if left else ""
    )
    if not theirs or not ours:
        untold = note("the answers of at least one recipe were not kept; python -m grlo_lite.evaluate RUN keeps them")
    title = f"<h4>{plain(label)} <small>against {plain(first)}</small></h4>"
    return title + (html_table(head, rows) if rows else "") + untold


def _scores(records: list[Record]) -> dict[tuple[str, str], dict[tuple[Any, ...], float]]:
    """By task and its metric, and by question, the mean score of the tuned answers over runs and samples.

    A question is known by its number, the hash of all of its task's questions, and how answers were sampled.
    """
    found: dict[tuple[str, str], dict[tuple[Any, ...], list[float]]] = {}
    for record in records:
        tasks = {row["task"]: row for row in record.evaluation.get("tasks", [])}
        for row in record.answers:
            score, task = number(row.get("score")), tasks.get(row.get("task"))
            if row.get("arm") != "tuned" or score is None or task is None:
                continue
            question = (*(task.get(key) for key in ASKED), row.get("question"))
            found.setdefault((task["task"], task["metric"]), {}).setdefault(question, []).append(score)
    return {task: {q: fmean(scores) for q, scores in questions.items()} for task, questions in found.items()}


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
    "What sets the recipes apart": apart,
    "Gains": gains,
    "Paired differences": paired,
    "Curves": curves,
    "The paper's claims": claims,
}
