"""What an evaluation comes to: evaluation.json's content, answers.jsonl's rows, the printed table. Pure functions."""

from dataclasses import asdict, dataclass
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


def evaluation(suite: str, outcomes: list[Outcome], missing: list[str], facts: dict[str, Any]) -> dict[str, Any]:
    """evaluation.json of both arms. The average is over the tasks of the accuracies, a win rate being no accuracy."""
    pairs = [paired_difference(o.scores("base"), o.scores("tuned")) for o in outcomes]
    rows = [_row(o, pair) for o, pair in zip(outcomes, pairs, strict=True)]
    for row, adjusted in zip(rows, paired_statistics.holm([pair.p_value for pair in pairs]), strict=True):
        row["p_value_holm"] = adjusted
    accurate = [(o, pair) for o, pair in zip(outcomes, pairs, strict=True) if o.task.metric == "accuracy"]
    arms = list(dict.fromkeys(arm for o in outcomes for arm in o.answers)) or list(ARMS)
    headline = HEADLINE if PLAIN in arms else SAME_TEXT
    result: dict[str, Any] = {"suite": suite, "arms": arms, "headline": headline, **facts}
    result |= {"missing": missing, "tasks": rows}
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
    reference = _published([o.task.name for o in outcomes])
    return result | ({"published_under_another_protocol": reference} if reference else {})


def other_arms(result: dict[str, Any]) -> list[str]:
    """The arms beside base and tuned that tuned is held against as well: the plain base, and the stages before."""
    return [arm for arm in result["arms"] if arm not in ARMS]


def _row(outcome: Outcome, pair: PairedDifference) -> dict[str, Any]:
    task = outcome.task
    row = {"task": task.name, "domain": task.domain, "metric": task.metric, **asdict(pair)}
    del row["standard_error"]
    for arm in (arm for arm in outcome.answers if arm not in ARMS):
        against = paired_difference(outcome.scores(arm), outcome.scores("tuned"))
        kept = ("base", "difference", "ci_low", "ci_high", "p_value")
        row[f"against_{arm}"] = {name: value for name, value in asdict(against).items() if name in kept}
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
        chance = f"{'yes' if task['p_value_holm'] < 0.05 else 'no'} (p {task['p_value_holm']:.2g})"
        name = task["task"] + (f" avg@{task['samples']}" if task["samples"] > 1 else "")
        name += "" if task["metric"] == "accuracy" else f" ({task['metric'].replace('_', ' ')})"
        could_show = f"{task['smallest_detectable']:.3f}"
        rows.append((task["domain"], name, str(task["n"]), *arms(task, "against"), chance, could_show))
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


def _notes(result: dict[str, Any]) -> list[str]:
    notes = [
        f"{result['headline']}.",
        "p-values: exact McNemar or paired t, after Holm over the tasks; could show: with 80 % power.",
    ]
    for task in result["tasks"]:
        cut = {arm: share for arm, share in task["truncated"].items() if share > 0.05}
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
    for arm in (arm for arm in other_arms(result) if arm != PLAIN):
        notes += _against_stage(result, arm)
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


def _judged(task: dict[str, Any]) -> str:
    judge = task["judge"]
    raw, controlled = judge["win_rate"], judge["length_controlled_win_rate"]
    base, tuned = (judge["mean_characters"][arm] for arm in ("base", "tuned"))
    return (
        f"{task['task']}: tuned wins {raw['rate']:.3f} [{raw['ci_low']:.3f}, {raw['ci_high']:.3f}], at equal length "
        f"{controlled['rate']:.3f} [{controlled['ci_low']:.3f}, {controlled['ci_high']:.3f}]; "
        f"characters {base:.0f} → {tuned:.0f}; judge: {judge['name']}, {judge['relation']}."
    )
