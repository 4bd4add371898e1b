"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run.

It answers every question anew, in batches of its own, where `evaluate` keeps and takes answers from a store; tasks,
scorers, statistics and the form of evaluation.json are the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.evaluation.results import ARMS, Outcome, evaluation, table
from grlo_lite.evaluation.tasks import microcosm, suites
from grlo_lite.evaluation.tasks.questions import questions_sha256
from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.generation.answers import rows_at_once, sampled_answers
from grlo_lite.generation.request import Answer
from grlo_lite.models import chat_template, trained_adapter
from grlo_lite.models.trained_adapter import Stage
from grlo_lite.prompts.row_formats import with_messages
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.layout import RunDir

Asked = list[tuple[Task, list[Question]]]


@dataclass(frozen=True)
class Measurement:
    """What will be asked at the end of a run: the suite's tasks with their questions, and what had to be left out."""

    recipe: Recipe
    asked: Asked
    missing: list[str]


def measurement(recipe: Recipe) -> Measurement:
    """The measurement that a recipe asks for, with its questions at hand before the first step.

    Tasks that only a judge can score are left to `evaluate`. Raises BadInput where nothing of the suite can be asked.
    """
    wanted = recipe.evaluation
    if wanted.suite == "none":
        return Measurement(recipe, [], [])
    tasks = suites.SUITES[wanted.suite]
    if wanted.suite == "microcosm":
        tasks = microcosm.exams(wanted.limit, recipe.seed, recipe.rollout.max_tokens)
    data_dir = Path(wanted.data_dir) if wanted.data_dir else None
    scored = tuple(task for task in tasks if task.judged is not None)
    asked, missing = suites.suite_questions(wanted.suite, scored, suites.Asked(limit=wanted.limit, data_dir=data_dir))
    return Measurement(recipe, asked, missing)


def measured(
    planned: Measurement, policy: Any, rewards: Any, heldout_rows: list, stages: tuple[Stage, ...] = ()
) -> dict[str, Any]:
    """evaluation.json of a trained policy: the reward of the answers to prompts that were kept out of training, and
    the suite. The `stages` that it went on from are arms of their own.
    """
    policy.model.eval()
    with trained_adapter.stages_loaded(policy.model, stages):
        return _measured(planned, policy, rewards, heldout_rows, (*ARMS, *(stage.arm for stage in stages)))


def _measured(
    planned: Measurement, policy: Any, rewards: Any, heldout_rows: list, arms: tuple[str, ...]
) -> dict[str, Any]:
    recipe, outcomes = planned.recipe, []
    if len(heldout_rows) > 1 and recipe.evaluation.heldout_prompts:
        print(f"measuring: {len(heldout_rows)} held-out prompts, {_named(arms)}", flush=True)
        outcomes.append(_heldout(recipe, policy, rewards, heldout_rows, arms))
    for task, questions in planned.asked:
        print(f"measuring: {task.name}, {len(questions)} questions, {_named(arms)}", flush=True)
        texts = [_text(policy, question.prompt) for question in questions]
        said = _of_arms(arms, policy, texts, task, recipe)
        assert task.judged is not None
        verdicts = {
            arm: [[task.judged(q, a.text) for a in samples] for q, samples in zip(questions, answers, strict=True)]
            for arm, answers in said.items()
        }
        outcomes.append(Outcome(task, questions, questions_sha256(questions), said, verdicts))
    return evaluation(recipe.evaluation.suite, outcomes, planned.missing, {"seed": recipe.seed})


def closing_lines(evaluation: dict[str, Any], run: RunDir) -> str:
    """The last lines of a run: base against tuned with 95 % intervals, and what to type next."""
    commands = {
        f"python -m grlo_lite.evaluate {run.path}": "in full: both kinds of base, chat judged, answers kept",
        f"head -n 4 {run.samples}": "what was said at the first step",
        "python -m grlo_lite.train seed=1": "the same with another seed",
        "python -m grlo_lite.train reward.shuffle=true": "the control: shuffled rewards must teach nothing",
    }
    width = max(map(len, commands))
    following = [f"  {command.ljust(width)}  # {note}" for command, note in commands.items()]
    shown = ["", table(evaluation)] if evaluation["tasks"] else []
    return "\n".join([*shown, "", f"the adapter is in {run.adapter}; next:", *following])


def _named(arms: tuple[str, ...]) -> str:
    *firsts, last = (arm.replace("_", " ") for arm in arms)
    return f"{', '.join(firsts)} and {last}"


def _heldout(recipe: Recipe, policy: Any, rewards: Any, rows: list, arms: tuple[str, ...]) -> Outcome:
    """The raw score of each arm's answers to the held-out prompts, as a task of its own."""
    name, domain = ("heldout-chat", "chat") if recipe.reward.judges else ("heldout-prompts", "held-out prompts")
    task = Task(name, domain, 1, recipe.rollout.max_tokens, lambda _: [], None, metric="reward", temperature=1)
    said = _of_arms(arms, policy, [chat_template.formatted(policy.tokenizer, row) for row in rows], task, recipe)
    verdicts = {}
    for arm, answers in said.items():
        conversations = [
            with_messages(row, [*row, {"role": "assistant", "content": samples[0].text}])
            for row, samples in zip(rows, answers, strict=True)
        ]
        verdicts[arm] = [[Verdict(score, "", "the reward's raw score")] for score in rewards.score(conversations)]
    questions = [Question(str(i), row[-1]["content"], "", "") for i, row in enumerate(rows)]
    return Outcome(task, questions, questions_sha256(questions), said, verdicts)


def _text(policy: Any, question: str) -> str:
    return chat_template.formatted(policy.tokenizer, [{"role": "user", "content": question}])


def _of_arms(
    arms: tuple[str, ...], policy: Any, texts: list[str], task: Task, recipe: Recipe
) -> dict[str, list[list[Answer]]]:
    """Each arm's answers to the same texts with the same seed, `task.samples` a text: base with the adapter off, tuned
    with it on, a stage with its own.
    """
    at_once, said = rows_at_once(policy.model, recipe.rollout.batch), {}
    repeated = [text for text in texts for _ in range(task.samples)]
    for arm in arms:
        with trained_adapter.in_effect(policy.model, arm):
            answers = sampled_answers(policy, repeated, task.sampling(), at_once, recipe.seed)
        said[arm] = [answers[start : start + task.samples] for start in range(0, len(answers), task.samples)]
    return said
