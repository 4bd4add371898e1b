"""What an evaluation comes to: evaluation.json's content, answers.jsonl's rows, the printed table. Pure functions."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from grlo_lite.evaluation import paired_statistics, published
from grlo_lite.evaluation.paired_statistics import PairedDifference, mean_of_differences, paired_difference
from grlo_lite.evaluation.tasks.questions import questions_sha256
from grlo_lite.evaluation.tasks.task import Question, Said, Task, Verdict
from grlo_lite.wording import aligned, numbers

ARMS = ("base", "tuned")


PLAIN = "base_plain"  # a third arm: the base asked without a template
SAME_TEXT = "base and tuned are asked the same text, in the chat template the adapter was trained with"
HEADLINE = (
    f"{SAME_TEXT}; base_plain is the base model asked without a template, after worked examples where the task has them"
)


OTHER = "tuned_"  # what the arms of further adapters begin with, in the order in which they were named


@dataclass(frozen=True)
class Rows:
    """Rows of evaluation.json that were made elsewhere: tasks, groups of them, and the arms in them."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One task's questions with each arm's answers and verdicts, a list of K samples a question."""

    task: Task
    questions: list[Question]
    answers: Said
    verdicts: dict[str, list[list[Verdict]]]
    pairwise: dict[str, Any] | None = None  # what the pairwise judge found

    def scores(self, arm: str) -> np.ndarray:
        """An arm's score a question, shape (N,): the mean of its K samples."""
        return np.array([np.mean([v.score for v in samples]) for samples in self.verdicts[arm]])

    def share(self, arm: str, of: str) -> float:
        """The share of an arm's answers that were `truncated`, or in which `nothing` to judge was found."""
        if of == "truncated":
            return float(np.mean([a.truncated for samples in self.answers[arm] for a in samples]))
        return float(np.mean([v.why == "nothing found" for samples in self.verdicts[arm] for v in samples]))


def scored(task: Task, questions: list[Question], said: Said) -> Outcome:
    """The outcome of a task that has a scorer."""
    assert task.judged is not None
    verdicts = {
        arm: [[task.judged(q, a.text) for a in samples] for q, samples in zip(questions, answers, strict=True)]
        for arm, answers in said.items()
    }
    return Outcome(task, questions, said, verdicts)


def evaluation(
    suite: str, outcomes: list[Outcome], missing: list[str], facts: dict[str, Any], more: Rows | None = None
) -> dict[str, Any]:
    """evaluation.json of both arms, with `more` rows of tasks that are not the kit's. The average is over the kit's
    tasks of the accuracies, a win rate being no accuracy.
    """
    more = more or Rows()
    pairs = [paired_difference(o.scores("base"), o.scores("tuned")) for o in outcomes]
    rows = [_row(o, pair) for o, pair in zip(outcomes, pairs, strict=True)] + more.tasks
    tested = [row for row in rows if row.get("p_value") is not None]
    for row, adjusted in zip(tested, paired_statistics.holm([row["p_value"] for row in tested]), strict=True):
        row["p_value_holm"] = adjusted
    accurate = [(o, pair) for o, pair in zip(outcomes, pairs, strict=True) if o.task.metric == "accuracy"]
    arms = list(dict.fromkeys([*(arm for o in outcomes for arm in o.answers), *more.arms])) or list(ARMS)
    headline = HEADLINE if PLAIN in arms else SAME_TEXT
    result: dict[str, Any] = {"suite": suite, "arms": arms, "headline": headline, **facts}
    result |= {"missing": missing, "tasks": rows} | ({"groups": more.groups} if more.groups else {})
    if accurate:
        by_domain: dict[str, list[PairedDifference]] = {}
        for outcome, pair in accurate:
            by_domain.setdefault(outcome.task.domain, []).append(pair)
        result["average"] = mean_of_differences([pair for _, pair in accurate])
        result["domains"] = [
            {"domain": domain, "tasks": len(found), **mean_of_differences(found)} for domain, found in by_domain.items()
        ]
        result["average_of_domains"] = _mean_of_domains(list(by_domain.values()))
        for arm in other_arms(result):
            theirs = [paired_difference(o.scores(arm), o.scores("tuned")) for o, _ in accurate]
            result[f"average_against_{arm}"] = mean_of_differences(theirs)
        for arm, before in steps(arms):
            found = [paired_difference(o.scores(before), o.scores(arm)) for o, _ in accurate]
            result.setdefault("average_steps", []).append({"arm": arm, "from": before, **mean_of_differences(found)})
    reference = _published([o.task.name for o in outcomes])
    return result | ({"published_under_another_protocol": reference} if reference else {})


def other_arms(result: dict[str, Any]) -> list[str]:
    """The arms beside base and tuned that tuned is held against as well: the plain base, and the stages before."""
    return [arm for arm in result["arms"] if arm not in ARMS]


def steps(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Each further adapter's arm with the arms that it is held against: the base, and the adapter named before it."""
    before, found = "tuned", []
    for arm in (arm for arm in arms if arm.startswith(OTHER)):
        found += [(arm, "base"), (arm, before)]
        before = arm
    return found


def shown(pair: PairedDifference) -> dict[str, Any]:
    """A difference as evaluation.json has it beside a row's own: `base` is the arm before, `tuned` the one after."""
    kept = ("base", "tuned", "difference", "ci_low", "ci_high", "p_value")
    return {name: value for name, value in asdict(pair).items() if name in kept}


def _samples_together(outcome: Outcome) -> list[dict[str, Any]]:
    """What K sampled answers a question are worth together: the chance that any is right, and that the most frequent
    one is, where a scorer takes one answer out of a text. Paired as the mean is.
    """
    k = outcome.task.samples
    if k < 2 or outcome.task.metric != "accuracy":
        return []

    def of(arm: str, worth: Callable[[list[Verdict]], float]) -> np.ndarray:
        return np.array([worth(samples) for samples in outcome.verdicts[arm]])

    def passed(samples: list[Verdict]) -> float:
        return paired_statistics.pass_at(k, len(samples), sum(v.score == 1 for v in samples))

    def voted(samples: list[Verdict]) -> float:
        return paired_statistics.majority([v.answer for v in samples], [v.score for v in samples])

    worths = {f"pass@{k}": passed}
    if any(v.answer for samples in outcome.verdicts["tuned"] for v in samples):
        worths[f"maj@{k}"] = voted
    return [
        {"task": outcome.task.name, "metric": name, "n": len(outcome.questions)}
        | shown(paired_difference(of("base", worth), of("tuned", worth)))
        for name, worth in worths.items()
    ]


def _row(outcome: Outcome, pair: PairedDifference) -> dict[str, Any]:
    task = outcome.task
    row = {"task": task.name, "domain": task.domain, "metric": task.metric, **asdict(pair)}
    del row["standard_error"]
    for arm in (arm for arm in outcome.answers if arm not in ARMS):
        against = paired_difference(outcome.scores(arm), outcome.scores("tuned"))
        kept = ("base", "difference", "ci_low", "ci_high", "p_value")
        row[f"against_{arm}"] = {name: value for name, value in asdict(against).items() if name in kept}
    compared = [
        {"arm": arm, "from": before, **shown(paired_difference(outcome.scores(before), outcome.scores(arm)))}
        for arm, before in steps(outcome.answers)
    ]
    row |= {"steps": compared} if compared else {}
    together = _samples_together(outcome)
    row |= {"also": together} if together else {}
    difference_N = outcome.scores("tuned") - outcome.scores("base")
    if not np.isin(difference_N, (-1, 0, 1)).all():
        low, high = paired_statistics.bca_interval(difference_N, seed=0)
        row["p_value_permutation"] = paired_statistics.permutation_p_value(difference_N, seed=0)
        row |= {"bca_low": low, "bca_high": high}
    row |= {"version": task.version, "samples": task.samples, "max_tokens": task.max_tokens}
    row |= {"temperature": task.temperature, "questions_sha256": questions_sha256(outcome.questions)}
    row["truncated"] = {arm: outcome.share(arm, "truncated") for arm in outcome.answers}
    row["nothing_found"] = {arm: outcome.share(arm, "nothing") for arm in outcome.answers}
    return row | ({"judge": outcome.pairwise} if outcome.pairwise else {})


def _mean_of_domains(domains: list[list[PairedDifference]]) -> dict[str, float]:
    """Every domain weighs the same, however many tasks it has; the interval follows from the tasks' errors."""
    weighted = [(pair, 1 / (len(domains) * len(found))) for found in domains for pair in found]
    mean = {name: sum(getattr(p, name) * w for p, w in weighted) for name in ("base", "tuned", "difference")}
    half = 1.959964 * float(np.sqrt(sum((p.standard_error * w) ** 2 for p, w in weighted)))
    return {**mean, "ci_low": mean["difference"] - half, "ci_high": mean["difference"] + half}


def _published(tasks: list[str]) -> dict[str, dict[str, float]]:
    found = {
        model: {task: a for task, a in zip(published.COLUMNS, accuracies, strict=True) if task in tasks}
        for model, accuracies in published.ACCURACIES.items()
    }
    return {model: shown for model, shown in found.items() if shown}


def answer_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """answers.jsonl: every answer with its verdict, ordered by task, question, arm and sample."""
    return [
        {
            "task": outcome.task.name,
            "question": question.id,
            "prompt": question.prompt,
            "arm": arm,
            "sample": k,
            "score": verdict.score,
            "why": verdict.why,
            "found": verdict.answer,
            "reference": question.reference,
            "truncated": answer.truncated,
            "tokens": answer.tokens,
            "text": answer.text,
        }
        for outcome in outcomes
        for i, question in enumerate(outcome.questions)
        for arm in outcome.answers
        for k, (answer, verdict) in enumerate(zip(outcome.answers[arm][i], outcome.verdicts[arm][i], strict=True))
    ]


def table(result: dict[str, Any]) -> str:
    """evaluation.json for a person, with a verdict on each difference after Holm's correction over the tasks."""
    stages = [arm for arm in other_arms(result) if arm != PLAIN]
    plain = [PLAIN] if PLAIN in result["arms"] else []
    head = ("tuned", "difference", "95 % interval", "more than chance?", "could show")
    shown = [arm.replace("_", " ") for arm in (*plain, "base", *stages)]
    rows: list[tuple[str, ...]] = [("domain", "task", "n", *shown, *head)]

    def arms(found: dict[str, Any], before: str) -> list[str]:
        """Each arm's own number, then tuned less base with its interval."""
        base, *rest = numbers(found)
        theirs = {arm: found.get(f"{before}_{arm}", {}).get("base") for arm in (*plain, *stages)}
        said = {arm: "" if rate is None else f"{rate:.3f}" for arm, rate in theirs.items()}
        return [*(said[arm] for arm in plain), base, *(said[arm] for arm in stages), *rest]

    for task in result["tasks"]:
        name = task["task"] + (f" avg@{task['samples']}" if task.get("samples", 1) > 1 else "")
        name += "" if task["metric"] == "accuracy" else f" ({_words(task['metric'])})"
        rows.append((task["domain"], name, str(task["n"]), *arms(task, "against"), *_verdict(task)))
        for also in task.get("also", []):
            rows.append(("", f"  {_words(also['metric'])}", str(also["n"]), *arms(also, "against"), "", ""))
    for group in result.get("groups", []):
        name = f"{group['group']}, {group['tasks']} tasks ({_words(group['metric'])})"
        rows.append(("group", name, "", *arms(group, ""), "", ""))
    for domain in result.get("domains", []):
        if domain["tasks"] > 1:
            rows.append((domain["domain"], f"mean of {domain['tasks']}", "", *arms(domain, ""), "", ""))
    for title, key, before in (
        ("average of tasks", "average", "average_against"),
        ("average of domains", "average_of_domains", ""),
    ):
        if key in result:
            against = {name: mean for name, mean in result.items() if before and name.startswith(before)}
            rows.append((title, "", "", *arms(result[key] | against, before), "", ""))
    return "\n".join([*aligned(rows, left=(0, 1)), "", *_notes(result)])


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace(",", ", ")


def _verdict(task: dict[str, Any]) -> tuple[str, str]:
    """Whether a difference is more than chance, and which one this n could have shown."""
    if "p_value_holm" not in task:
        return "", ""
    chance = f"{'yes' if task['p_value_holm'] < 0.05 else 'no'} (p {task['p_value_holm']:.2g})"
    return chance, f"{task['smallest_detectable']:.3f}"


def _notes(result: dict[str, Any]) -> list[str]:
    tests = "exact McNemar or paired t"
    if any(task.get("interval") == "paired bootstrap" for task in result["tasks"]):
        tests += ", of a whole set's metrics a paired bootstrap over documents"
    notes = [
        f"{result['headline']}.",
        f"p-values: {tests}, after Holm over the tasks; could show: with 80 % power.",
    ]
    for task in result["tasks"]:
        cut = {arm: share for arm, share in task.get("truncated", {}).items() if share > 0.05}
        if cut:
            said = ", ".join(f"{arm} {share:.0%}" for arm, share in cut.items())
            notes.append(f"{task['task']}: answers that reached {task['max_tokens']} tokens: {said}.")
        if "judge" in task:
            notes.append(_judged(task))
    if "average_against_base_plain" in result:
        gain = result["average_against_base_plain"]
        notes.append(
            f"against the base without the template the average gain is {gain['difference']:+.3f} "
            f"[{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]: what is beyond the template."
        )
    for arm in (arm for arm in other_arms(result) if arm != PLAIN and not arm.startswith(OTHER)):
        notes += _against_stage(result, arm)
    for arm, before in steps(result["arms"]):
        notes += _step(result, arm, before)
    notes += result.get("notes", [])
    notes += [f"left out: {said}" for said in result["missing"]]
    for model, accuracies in result.get("published_under_another_protocol", {}).items():
        numbers = ", ".join(f"{task} {accuracy:.3f}" for task, accuracy in accuracies.items())
        notes.append(f"another protocol, not comparable: {model} (General-Reasoner's release): {numbers}")
    return notes


def _against_stage(result: dict[str, Any], arm: str) -> list[str]:
    """What this stage added to an earlier one, a task each and on average."""
    rows = [(task["task"], task[f"against_{arm}"]) for task in result["tasks"] if f"against_{arm}" in task]
    rows += [("average", result[f"average_against_{arm}"])] if f"average_against_{arm}" in result else []
    said = [f"{name} {g['difference']:+.3f} [{g['ci_low']:+.3f}, {g['ci_high']:+.3f}]" for name, g in rows]
    return [f"against {arm.replace('_', ' ')}, paired: {', '.join(said)}."] if said else []


def _step(result: dict[str, Any], arm: str, before: str) -> list[str]:
    """What a further adapter does beside an arm, a task each and on average."""
    found = [(task["task"], step) for task in result["tasks"] for step in task.get("steps", [])]
    found += [("average", step) for step in result.get("average_steps", [])]
    said = [
        f"{name} {step['difference']:+.3f} [{step['ci_low']:+.3f}, {step['ci_high']:+.3f}]"
        for name, step in found
        if (step["arm"], step["from"]) == (arm, before) and "ci_low" in step
    ]
    where = result.get("others", {}).get(arm, "")
    return [f"{arm.replace('_', ' ')} ({where}) against {before}, paired: {', '.join(said)}."] if said else []


def _judged(task: dict[str, Any]) -> str:
    judge = task["judge"]
    raw, controlled = judge["win_rate"], judge["length_controlled_win_rate"]
    base, tuned = (judge["mean_characters"][arm] for arm in ("base", "tuned"))
    return (
        f"{task['task']}: tuned wins {raw['rate']:.3f} [{raw['ci_low']:.3f}, {raw['ci_high']:.3f}], at equal length "
        f"{controlled['rate']:.3f} [{controlled['ci_low']:.3f}, {controlled['ci_high']:.3f}]; "
        f"characters {base:.0f} → {tuned:.0f}; judge: {judge['name']}, {judge['relation']}."
    )
