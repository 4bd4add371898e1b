"""GPQA-diamond and MMLU-Pro: options in a fixed order, a letter read from wherever the answer puts it."""

import random
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.grading.extraction import stated_letter

LETTERS = "ABCDEFGHIJ"


REQUEST = 'Reason step by step, then end with "The answer is (X)", where X is the letter of the right option.'


WORKED = (
    "Question: Which of these is a mammal?\n(A) trout\n(B) bat\n(C) wren\n(D) toad\n"
    "Answer: Trout are fish, wrens are birds and toads are amphibians; bats bear live young and nurse them. "
    "The answer is (B).\n\n"
    "Question: A car drives 90 km in 1.5 hours. What is its mean speed?\n(A) 45 km/h\n(B) 135 km/h\n(C) 60 km/h\n"
    "Answer: 90 km divided by 1.5 h is 60 km/h. The answer is (C).\n\n"
)


def asked(identity: str, question: str, options: list[str], right: int) -> Question:
    """A question with lettered options, of which number `right` is the answer."""
    lines = "\n".join(f"({letter}) {option.strip()}" for letter, option in zip(LETTERS, options, strict=False))
    body = f"{question.strip()}\n{lines}"
    return Question(
        identity,
        f"{body}\n\n{REQUEST}",
        f"{WORKED}Question: {body}\nAnswer:",
        LETTERS[right],
        {"letters": LETTERS[: len(options)]},
    )


def gpqa(rows: list[dict[str, Any]]) -> list[Question]:
    """GPQA's rows; each question's options are in an order of its own that follows from the question alone."""
    questions = []
    for i, row in enumerate(rows):
        options = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
        order = random.Random(f"gpqa {row['Question']}").sample(range(4), 4)
        identity = str(row.get("Record ID", i))
        questions.append(asked(identity, row["Question"], [options[j] for j in order], order.index(0)))
    return questions


def mmlu_pro(rows: list[dict[str, Any]]) -> list[Question]:
    """MMLU-Pro's rows (`question`, up to ten `options`, `answer_index`)."""
    return [
        asked(str(row["question_id"]), row["question"], list(row["options"]), int(row["answer_index"])) for row in rows
    ]


def judged(question: Question, text: str) -> Verdict:
    """Right where the option that the answer ends on is the reference."""
    said, how = stated_letter(text, question.data["letters"])
    right = said == question.reference
    return Verdict(float(right), said, how if right or not said else f"{how}, and it is not {question.reference}")


GPQA = Task(
    "gpqa_diamond", "knowledge", 1, 3072, gpqa, judged, ("gpqa_diamond.jsonl", "gpqa.jsonl"),
    ("Idavidrein/gpqa", "gpqa_diamond", "train"), stops=("\n\nQuestion:",), size=198,
)  # fmt: skip


MMLU_PRO = Task(
    "mmlu_pro", "knowledge", 1, 2048, mmlu_pro, judged, ("mmlu_pro.jsonl",),
    ("TIGER-Lab/MMLU-Pro", None, "test"), stops=("\n\nQuestion:",), limit=1000, size=12032,
)  # fmt: skip
