"""Our scorers on real reference answers, beside lm-eval's: `python benchmarks/scoring.py DATA_DIR [--without-code]`.

Three tables: what share of the reference answers is accepted in each wording, what share of another question's
answers is, and where lm-eval's bundled tasks, fed the same answers, say otherwise. DATA_DIR holds the files that
docs/evaluation.md names.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grlo_lite.evaluation.tasks import code, questions
from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
from grlo_lite.evaluation.tasks.task import Question, Task

WORDINGS = {
    "boxed": "So it is clear.\n\n$$\\boxed{{{}}}$$",
    "stated": "First we think.\n\nThe answer is ${}$.",
    "bold": "We find it at last.\n\n**Answer:** ${}$",
}
WHOLE_NUMBERS = {
    "bare": "The answer is {}.",
    "boxed, three digits": "\\boxed{{{:0>3}}}",
    "with a unit": "Answer: {} apples.",
}
MATHEMATICS = (mathematics_tasks.GSM8K, mathematics_tasks.MATH500, mathematics_tasks.AIME24, mathematics_tasks.AMC23)


def right(task: Task, question: Question, text: str) -> bool:
    """Whether our scorer accepts an answer."""
    assert task.judged is not None
    return bool(task.judged(question, text).score)


def worded(task: Task, question: Question) -> dict[str, str]:
    """A question's reference answer in each wording that a model might give it."""
    wordings = {name: text.format(question.reference) for name, text in WORDINGS.items()}
    if task is not mathematics_tasks.MATH500:
        wordings |= {name: text.format(question.reference) for name, text in WHOLE_NUMBERS.items()}
    return wordings


def solutions(task: Task, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The data set's own worked solutions by question id, where it has them."""
    field = {"gsm8k": "answer", "math500": "solution", "aime24": "solution"}.get(task.name)
    return {q.id: row[field] for q, row in zip(task.questions(rows), rows, strict=True)} if field else {}


def others(asked: list[Question]) -> Iterator[tuple[Question, Question]]:
    """Each question with the next one whose reference is another value."""
    for i, question in enumerate(asked):
        rest = (asked[(i + step) % len(asked)] for step in range(1, len(asked)))
        yield question, next(o for o in rest if o.reference.strip() != question.reference.strip())


def mathematics_tables(data: Path) -> list[str]:
    lines = ["| task | wording | n | accepted | refused |", "| --- | --- | --- | --- | --- |"]
    for task in MATHEMATICS:
        rows = questions.rows_of(next(data / name for name in task.files if (data / name).is_file()))
        asked, own = task.questions(rows), solutions(task, rows)
        answers = {name: {q.id: worded(task, q)[name] for q in asked} for name in worded(task, asked[0])}
        for wording, texts in (answers | ({"its solution": own} if own else {})).items():
            refused = [q.id for q in asked if not right(task, q, texts[q.id])]
            lines.append(
                f"| {task.name} | {wording} | {len(asked)} | {len(asked) - len(refused)} | {' '.join(refused)} |"
            )
        wrong = [(q.id, o.reference) for q, o in others(asked) if right(task, q, worded(task, o)["boxed"])]
        lines.append(f"| {task.name} | another question's | {len(asked)} | {len(wrong)} | accepted: {wrong} |")
    return lines


def code_table(data: Path) -> list[str]:
    asked = questions.questions_of(code.HUMANEVAL, data, None)
    whole = {q.id: f"Here it is.\n\n```python\n{q.data['prompt']}{q.reference}```\nDone." for q in asked}
    lines = []
    for name, texts in (("continuation", {q.id: q.reference for q in asked}), ("fenced", whole)):
        refused = [q.id for q in asked if not code.judged_humaneval(q, texts[q.id]).score]
        lines.append(f"| humaneval | {name} | {len(asked)} | {len(asked) - len(refused)} | {' '.join(refused)} |")
    wrong = [q.id for q, o in others(asked) if code.judged_humaneval(q, whole[o.id]).score]
    lines.append(f"| humaneval | another question's | {len(asked)} | {len(wrong)} | accepted: {wrong} |")
    return lines


if __name__ == "__main__":
    print("\n".join(mathematics_tables(Path(sys.argv[1]))))
    if "--without-code" not in sys.argv:
        print("\n".join(code_table(Path(sys.argv[1]))))
