"""Base against tuned as HTML: the differences with their intervals, and answers of both side by side."""

from typing import Any

from grlo_lite.reporting.charts import Whisker, forest
from grlo_lite.reporting.html import excerpt, html_table, note, plain
from grlo_lite.reporting.record import Record
from grlo_lite.wording import numbers

ANSWERS = 10  # questions whose answers are shown


RULE = (
    "Chosen by a rule that does not look at what came out: of all questions in their order, the one in the middle of "
    "each of ten equal stretches; of several samples the first."
)


def base_against_tuned(record: Record) -> str:
    """evaluation.json as a forest plot for each metric, and as a table."""
    found = record.evaluation
    if not found:
        return note(f"not evaluated yet: python -m grlo_lite.evaluate {record.where}")
    if not found["tasks"]:
        return note("the evaluation has no tasks")
    average = found.get("average")
    plots = []
    for metric in dict.fromkeys(task["metric"] for task in found["tasks"]):
        rows = [
            _whisker(task["task"], f"{task['n']:,} questions", task)
            for task in found["tasks"]
            if task["metric"] == metric
        ]
        if metric == "accuracy" and average and len(rows) > 1:
            rows.append(_whisker("average of tasks", f"{len(rows)} tasks", average, whole=True))
        unit = "tuned less base, with 95 % intervals"
        plots.append(forest(metric.replace("_", " ").capitalize(), unit, rows))
    notes = [f"{str(found.get('headline', '')).capitalize()}." if found.get("headline") else ""]
    notes += [f"Left out: {said}" for said in found.get("missing", [])]
    for model, accuracies in found.get("published_under_another_protocol", {}).items():
        told = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in accuracies.items())
        notes.append(f"Published under another protocol, for scale only: {model} (General-Reasoner's release): {told}")
    table = (
        f"<details><summary>The same as a table, suite {plain(str(found['suite']))}</summary>{_table(found)}</details>"
    )
    return "".join(plots) + "".join(map(note, notes)) + table


def _whisker(name: str, detail: str, row: dict[str, Any], whole: bool = False) -> Whisker:
    base, tuned, difference, interval = numbers(row)
    said = f"{difference} {interval}"
    return Whisker(name, detail, f"{base} → {tuned}", row["difference"], row["ci_low"], row["ci_high"], said, whole)


def _table(found: dict[str, Any]) -> str:
    head = [
        "task",
        "questions",
        "base",
        "tuned",
        "difference",
        "95 % interval",
        "p, after Holm",
        "could show",
        "cut: base, tuned",
    ]
    rows = []
    for task in found["tasks"]:
        cut, holm, least = task.get("truncated", {}), task.get("p_value_holm"), task.get("smallest_detectable")
        rows.append(
            [
                f"{task['task']} ({task['metric'].replace('_', ' ')})", f"{task['n']:,}", *numbers(task),
                "" if holm is None else f"{holm:.2g}", "" if least is None else f"{least:.3f}",
                ", ".join(f"{cut[arm]:.0%}" for arm in ("base", "tuned") if arm in cut),
            ]
        )  # fmt: skip
    if "average" in found:
        rows.append(["average of tasks", "", *numbers(found["average"]), "", "", ""])
    said = "p: exact McNemar or paired t. Could show: the smallest difference that would show with 80 % power."
    return html_table(head, rows) + note(said)


def answers_side_by_side(record: Record) -> str:
    """Ten questions with the answers of base and tuned, and the rule by which they were chosen."""
    pairs = _pairs(record.answers)
    if not pairs:
        how = f"python -m grlo_lite.evaluate {record.where}"
        return note(f"the answers of base and tuned were not kept; {how} keeps them")
    chosen = chosen_pairs(pairs)
    shown = "".join(_pair(task, question, arms) for task, question, arms in chosen)
    return note(f"{RULE} {len(chosen)} of {len(pairs):,}.") + shown


Pair = tuple[str, str, dict[str, dict[str, Any]]]  # task, question, the arms' first answers


def _pairs(rows: list[dict[str, Any]]) -> list[Pair]:
    """The questions that base and tuned both answered, in the order of the file."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row.get("sample", 0) == 0 and isinstance(row.get("text"), str):
            found.setdefault((str(row.get("task")), str(row.get("question"))), {})[str(row.get("arm"))] = row
    return [(task, question, arms) for (task, question), arms in found.items() if {"base", "tuned"} <= arms.keys()]


def chosen_pairs(pairs: list[Pair], most: int = ANSWERS) -> list[Pair]:
    """At most `most`, by RULE."""
    count = min(most, len(pairs))
    return [pairs[(2 * n + 1) * len(pairs) // (2 * count)] for n in range(count)]


def _pair(task: str, question: str, arms: dict[str, dict[str, Any]]) -> str:
    asked = arms["tuned"].get("prompt")
    asked = asked if isinstance(asked, str) else f"question {question} (its text is not kept in this version's answers)"
    reference = str(arms["tuned"].get("reference") or "")
    right = f" <small>the answer is <b>{excerpt(reference, 200)}</b></small>" if reference else ""
    sides = "".join(_side(name, arms[arm]) for name, arm in (("Base", "base"), ("Tuned", "tuned")))
    return (
        f'<article class="pair"><p class="asked" dir="auto">{excerpt(asked)}</p>'
        f'<p class="told">{plain(task)}{right}</p><div class="two">{sides}</div></article>'
    )


def _side(name: str, row: dict[str, Any]) -> str:
    told = [f"{row['tokens']} tokens"] if "tokens" in row else []
    told += ["cut at its length"] if row.get("truncated") else []
    score, kind = row.get("score"), ""
    if score in (0, 1) and row.get("reference"):
        told.insert(0, "right" if score else "wrong")
        kind = " right" if score else " wrong"
    elif isinstance(score, int | float):
        told.insert(0, f"score {score:+.2f}")
    return (
        f'<div class="side{kind}"><h4>{name} <small>{plain(" · ".join(told))}</small></h4>'
        f'<p class="said" dir="auto">{excerpt(row["text"]) or "(an empty answer)"}</p></div>'
    )
