"""The suites by name, and the questions of one as the command line changes them."""

from dataclasses import dataclass, replace
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks import chat, choices, code, instructions, mathematics, microcosm
from grlo_lite.evaluation.tasks.questions import Missing, questions_of
from grlo_lite.evaluation.tasks.task import Asked, Task
from grlo_lite.grading import sandbox
from grlo_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Limits:
    """How much of a suite is asked, and from where; None is what each task says itself."""

    limit: int | None = None
    samples: int | None = None
    max_tokens: int | None = None
    data_dir: Path | None = None
    code_allowed: bool = False
    strict: bool = False  # whether a missing task is an error


def suite_questions(suite: str, tasks: tuple[Task, ...], limits: Limits) -> tuple[Asked, list[str]]:
    """A suite's tasks with their questions, and what had to be left out and why.

    Raises BadInput where nothing is left, or where something is missing and `strict` is set.
    """
    asked, missing = [], []
    for task in tasks:
        try:
            if why := _hindrance(task, limits.code_allowed):
                raise Missing(f"{task.name}: {why}")
            questions = questions_of(task, limits.data_dir, limits.limit)
            asked.append((_adjusted(task, limits), questions))
        except Missing as absent:
            missing.append(str(absent))
    for said in missing:
        print(f"left out: {said}", flush=True)
    if not asked or (missing and limits.strict):
        more = f"; and {len(missing) - 1} more, listed above" if len(missing) > 1 else ""
        raise BadInput(f"{'not all' if asked else 'nothing'} of suite {suite} can be asked: {missing[0]}{more}")
    return asked, missing


def _hindrance(task: Task, code_allowed: bool) -> str:
    if why := task.hindrance():
        return why
    if task.runs_code and not code_allowed:
        return "it runs code that the model wrote; allow that, in the sandbox, with --allow-code-execution"
    return sandbox.unavailable() if task.runs_code else ""


def _adjusted(task: Task, limits: Limits) -> Task:
    max_tokens = min(task.max_tokens, limits.max_tokens or task.max_tokens)
    samples = limits.samples if limits.samples and task.temperature else task.samples
    return replace(task, max_tokens=max_tokens, samples=samples)


MATHEMATICS = (mathematics.MATH500, mathematics.GSM8K, mathematics.AIME24, mathematics.AIME25, mathematics.AMC23)


KNOWLEDGE = (choices.GPQA, choices.MMLU_PRO)


CODE = (code.HUMANEVAL, code.MBPP)


SUITES: dict[str, tuple[Task, ...]] = {
    "quick": (mathematics.GSM8K, mathematics.MATH500, choices.MMLU_PRO, instructions.IFEVAL),
    "grlo": (*MATHEMATICS, *KNOWLEDGE, *CODE, instructions.IFEVAL, chat.CHAT),
    "math": MATHEMATICS,
    "knowledge": KNOWLEDGE,
    "code": CODE,
    "chat": (instructions.IFEVAL, chat.CHAT),
    "microcosm": (*microcosm.exams(), microcosm.CHAT),
}


def task_named(name: str) -> Task | None:
    """The kit's own task of a name, whichever suite it is in."""
    return next((task for suite in SUITES.values() for task in suite if task.name == name), None)


def run_tasks(recipe: Recipe) -> tuple[Task, ...]:
    """What a run's own measurement asks: the tasks of its suite that need no judge, those of the microcosm with as many
    questions and tokens as the recipe says.
    """
    if recipe.evaluation.suite == "none":
        return ()
    tasks = SUITES[recipe.evaluation.suite]
    if tasks is SUITES["microcosm"]:
        tasks = microcosm.exams(recipe.evaluation.limit, recipe.seed, recipe.rollout.max_tokens)
    return tuple(task for task in tasks if task.judged is not None)


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
