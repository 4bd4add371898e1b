"""GSM8K, MATH-500, AIME and AMC: asked for a boxed answer, scored by what the answer says and not by how it says it."""

from importlib.util import find_spec
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.grading.extraction import stated_expression, stated_number
from grlo_lite.grading.mathematics import same_value

REQUEST = "Reason step by step, and put your final answer within \\boxed{}."


# Worked examples for the base model without a template, written for this project
WORKED = (
    ("A box holds 4 rows of 6 pears. Five pears are eaten. How many pears are left?",
     "The box holds 4 * 6 = 24 pears. After five are eaten, 24 - 5 = 19 are left. The answer is \\boxed{19}."),
    ("What is the slope of the line through $(1, 2)$ and $(4, 11)$?",
     "The slope is $\\frac{11 - 2}{4 - 1} = \\frac{9}{3} = 3$. The answer is \\boxed{3}."),
    ("Solve $2x^2 = 18$ for the positive value of $x$.",
     "Dividing by 2 gives $x^2 = 9$, so the positive value is $x = 3$. The answer is \\boxed{3}."),
    ("A coin is thrown twice. What is the probability of two heads?",
     "Each throw shows heads with probability $\\frac{1}{2}$, so both do with probability "
     "$\\frac{1}{2} \\cdot \\frac{1}{2} = \\frac{1}{4}$. The answer is \\boxed{\\frac{1}{4}}."),
)  # fmt: skip


def asked(identity: str, problem: str, reference: str) -> Question:
    """A problem asked in a user's turn with a request for a box, and plainly after four worked examples."""
    examples = "".join(f"Problem: {question}\nSolution: {answer}\n\n" for question, answer in WORKED)
    return Question(identity, f"{problem}\n\n{REQUEST}", f"{examples}Problem: {problem}\nSolution:", reference)


def judged_number(question: Question, text: str) -> Verdict:
    """Right where the number that the answer ends on is the reference."""
    return _verdict(question, *stated_number(text))


def judged_expression(question: Question, text: str) -> Verdict:
    """Right where the expression that the answer ends on is mathematically the reference."""
    return _verdict(question, *stated_expression(text))


def _verdict(question: Question, said: str, how: str) -> Verdict:
    right = same_value(said, question.reference)
    return Verdict(float(right), said, how if right or not said else f"{how}, and it is not {question.reference}")


def gsm8k(rows: list[dict[str, Any]]) -> list[Question]:
    """GSM8K's rows (`question`, `answer` ending on `#### 18`), numbered as in the file."""
    return [
        asked(str(i), row["question"], row["answer"].rsplit("####", 1)[1].strip().replace(",", ""))
        for i, row in enumerate(rows)
    ]


def math500(rows: list[dict[str, Any]]) -> list[Question]:
    """MATH-500's rows (`problem`, `answer`, `unique_id`)."""
    return [asked(row["unique_id"], row["problem"], row["answer"]) for row in rows]


def competition(rows: list[dict[str, Any]]) -> list[Question]:
    """AIME's and AMC's rows (`problem`, `answer`, in any case): the answers are whole numbers, as `073`, 73 or 73.0."""
    fields = [{key.lower(): value for key, value in row.items()} for row in rows]
    return [
        asked(str(row.get("id", i)), row["problem"], str(int(float(row["answer"])))) for i, row in enumerate(fields)
    ]


def unavailable() -> str:
    """Why answers cannot be scored here, or nothing where they can."""
    return "" if find_spec("math_verify") else "its scoring needs math_verify; pip install 'grlo-lite[eval]'"


PLAIN_STOPS = ("\n\nProblem:", "\nProblem:")


GSM8K = Task(
    "gsm8k", "mathematics", 1, 1024, gsm8k, judged_number, ("gsm8k_test.jsonl", "gsm8k.jsonl"),
    ("openai/gsm8k", "main", "test"), stops=PLAIN_STOPS, size=1319, hindrance=unavailable,
)  # fmt: skip


MATH500 = Task(
    "math500", "mathematics", 1, 3072, math500, judged_expression, ("math500.jsonl",),
    ("HuggingFaceH4/MATH-500", None, "test"), stops=PLAIN_STOPS, size=500, hindrance=unavailable,
)  # fmt: skip


def _competition(name: str, size: int, hub: tuple[str, str | None, str] | None) -> Task:
    """Few questions, so 8 samples each at the temperature that the reference figures were sampled at (avg@K)."""
    return Task(
        name, "mathematics", 1, 4096, competition, judged_number, (f"{name}.jsonl",), hub,
        samples=8, temperature=0.6, top_p=0.95, stops=PLAIN_STOPS, size=size, hindrance=unavailable,
    )  # fmt: skip


AIME24 = _competition("aime24", 30, ("Maxwell-Jia/AIME_2024", None, "train"))


AIME25 = _competition("aime25", 30, ("math-ai/aime25", None, "test"))


AMC23 = _competition("amc23", 40, None)
