"""HumanEval and MBPP: the answer's code and the task's tests, run together in the sandbox."""

import re
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.grading.extraction import code_block
from grlo_lite.grading.sandbox import passes

SECONDS = 10.0


PLAIN_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\nassert ", "\n```")


def humaneval(rows: list[dict[str, Any]]) -> list[Question]:
    """HumanEval's rows: a signature with a docstring to be completed."""
    return [
        Question(
            row["task_id"],
            "Complete this Python function. Answer with the whole function, imports included, in one ```python block."
            f"\n\n```python\n{row['prompt'].rstrip()}\n```",
            row["prompt"],
            row["canonical_solution"],
            {key: row[key] for key in ("prompt", "test", "entry_point")},
        )
        for row in rows
    ]


def humaneval_program(question: Question, text: str) -> tuple[str, str]:
    """The program that decides whether an answer is right, and how the answer gave its code.

    An answer that defines the function itself still gets what the prompt puts before it (imports and helpers); any
    other goes on from the prompt.
    """
    entry, prompt = question.data["entry_point"], question.data["prompt"]
    code, how = code_block(text, entry)
    if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(entry)}\b", code, re.MULTILINE):
        before = prompt[: prompt.index(f"def {entry}")]
        code = f"{before}\n{code}"
    else:
        code = prompt + code
    return f"{code}\n\n{question.data['test']}\n\ncheck({entry})\n", how


def mbpp(rows: list[dict[str, Any]]) -> list[Question]:
    """MBPP's test questions (task ids 11 to 510, if the file holds the others as well)."""
    questions = []
    for row in rows:
        if not 11 <= int(row["task_id"]) <= 510:
            continue
        task, tests = row.get("text") or row["prompt"], row["test_list"]
        imports = row.get("test_setup_code") or "\n".join(row.get("test_imports", []))
        shown = "\n".join(tests)
        questions.append(
            Question(
                str(row["task_id"]),
                f"{task}\nAnswer with one ```python block that passes these tests:\n\n```python\n{shown}\n```",
                f'"""\n{task}\n\n{shown}\n"""\n',
                row["code"],
                {"program_tests": f"{imports}\n{shown}", "entry_point": _tested_function(shown)},
            )
        )
    return questions


def _tested_function(tests: str) -> str:
    """The function that the first test calls, be it inside `set(…)`, `math.isclose(…)` or brackets."""
    names = re.findall(r"\b([A-Za-z_]\w*)\s*\(", tests.split("\n")[0].replace("assert(", "assert ("))
    builtin = {"assert", "set", "sorted", "tuple", "list", "isclose", "len", "str", "round", "not", "sum", "abs"}
    return next((name for name in names if name not in builtin), "")


def mbpp_program(question: Question, text: str) -> tuple[str, str]:
    """The answer's code followed by the tests, and how the answer gave its code."""
    code, how = code_block(text, question.data["entry_point"])
    return f"{code}\n\n{question.data['program_tests']}\n", how


def program(question: Question, text: str) -> tuple[str, str]:
    """The program that decides whether an answer is right, of either task, and how the answer gave its code."""
    return (mbpp_program if "program_tests" in question.data else humaneval_program)(question, text)


def judged_humaneval(question: Question, text: str) -> Verdict:
    """Right where the function passes every test of the task within the sandbox's limits."""
    return _verdict(*humaneval_program(question, text))


def judged_mbpp(question: Question, text: str) -> Verdict:
    """Right where the code passes the three tests of the task within the sandbox's limits."""
    return _verdict(*mbpp_program(question, text))


def _verdict(program: str, how: str) -> Verdict:
    outcome = passes(program, SECONDS)
    return Verdict(float(outcome.passed), "", f"{how}; {outcome.why}")


HUMANEVAL = Task(
    "humaneval", "code", 1, 1024, humaneval, judged_humaneval, ("HumanEval.jsonl.gz", "HumanEval.jsonl"),
    ("openai/openai_humaneval", None, "test"), stops=PLAIN_STOPS, runs_code=True, size=164,
)  # fmt: skip


MBPP = Task(
    "mbpp", "code", 1, 1024, mbpp, judged_mbpp, ("mbpp.jsonl",),
    ("google-research-datasets/mbpp", "full", "test"), stops=("\n\n\n", '\n"""', "\nassert ", "\nprint(", "\n```"),
    runs_code=True, size=500,
)  # fmt: skip
