"""The suites by name, and the questions of one as the command line changes them."""

import argparse
from dataclasses import replace

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks import chat, choices, code, instructions
from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
from grlo_lite.evaluation.tasks import microcosm as microcosm_task
from grlo_lite.evaluation.tasks.questions import Missing, questions_of
from grlo_lite.evaluation.tasks.task import Question, Task


def suite_questions(suite: str, arguments: argparse.Namespace) -> tuple[list[tuple[Task, list[Question]]], list[str]]:
    """The suite's tasks with their questions, as the command line changes them, and what had to be left out and why.

    Raises BadInput where nothing is left, or where something is missing under --strict.
    """
    asked, missing = [], []
    for task in SUITES[suite]:
        try:
            if why := _hindrance(task, arguments.allow_code_execution):
                raise Missing(f"{task.name}: {why}")
            asked.append((_adjusted(task, arguments), questions_of(task, arguments.data_dir, arguments.limit)))
        except Missing as absent:
            missing.append(str(absent))
    for said in missing:
        print(f"left out: {said}", flush=True)
    if not asked or (missing and arguments.strict):
        more = f"; and {len(missing) - 1} more, listed above" if len(missing) > 1 else ""
        raise BadInput(f"{'not all' if asked else 'nothing'} of suite {suite} can be asked: {missing[0]}{more}")
    return asked, missing


def _hindrance(task: Task, code_allowed: bool) -> str:
    from grlo_lite.grading import sandbox

    if task is instructions.IFEVAL:
        return instructions.unavailable()
    if task.domain == "mathematics":
        try:
            import math_verify  # noqa: F401
        except ImportError:
            return "its scoring needs math_verify; pip install 'grlo-lite[eval]'"
    if task.runs_code and not code_allowed:
        return "it runs code that the model wrote; allow that, in the sandbox, with --allow-code-execution"
    return sandbox.unavailable() if task.runs_code else ""


def _adjusted(task: Task, arguments: argparse.Namespace) -> Task:
    max_tokens = min(task.max_tokens, arguments.max_tokens or task.max_tokens)
    samples = arguments.samples if arguments.samples and task.temperature else task.samples
    return replace(task, max_tokens=max_tokens, samples=samples)


MATHEMATICS = (
    mathematics_tasks.MATH500,
    mathematics_tasks.GSM8K,
    mathematics_tasks.AIME24,
    mathematics_tasks.AIME25,
    mathematics_tasks.AMC23,
)


KNOWLEDGE = (choices.GPQA, choices.MMLU_PRO)


CODE = (code.HUMANEVAL, code.MBPP)


SUITES: dict[str, tuple[Task, ...]] = {
    "quick": (mathematics_tasks.GSM8K, mathematics_tasks.MATH500, choices.MMLU_PRO, instructions.IFEVAL),
    "grlo": (*MATHEMATICS, *KNOWLEDGE, *CODE, instructions.IFEVAL, chat.CHAT),
    "math": MATHEMATICS,
    "knowledge": KNOWLEDGE,
    "code": CODE,
    "chat": (instructions.IFEVAL, chat.CHAT),
    "microcosm": (*microcosm_task.EXAMS, microcosm_task.CHAT),
}


def question_sets() -> dict[str, tuple[str, ...]]:
    """Every task whose questions stand in a file, and the names by which they may be known: what decontamination has to
    look for. A task named like its whole domain ("chat") is known by its files alone.
    """
    tasks = {task.name: task for suite in SUITES.values() for task in suite if task.files}
    known = {}
    for name, task in tasks.items():
        names = [name, *(file.split(".jsonl")[0] for file in task.files), *(task.hub[:1] if task.hub else ())]
        known[name] = tuple(one for one in names if one != task.domain)
    return known
