"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run.

It answers every question anew, in batches of its own, where `evaluate` keeps and takes answers from a store; tasks,
scorers, statistics and the form of evaluation.json are the same.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.evaluation.results import ARMS, Outcome, evaluation, scored, table
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.task import Asked, Question, Said, Task, Verdict
from grlo_lite.generation.answers import rows_at_once, sampled_answers
from grlo_lite.models import chat_template
from grlo_lite.models.chat_template import Messages
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.layout import RunDir


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
    limits = suites.Limits(limit=wanted.limit, data_dir=Path(wanted.data_dir) if wanted.data_dir else None)
    return Measurement(recipe, *suites.suite_questions(wanted.suite, suites.run_tasks(recipe), limits))


def measured(planned: Measurement, policy: Any, rewards: Any, heldout_rows: list) -> dict[str, Any]:
    """evaluation.json of a trained policy: the reward of the answers to prompts that were kept out of training, and
    the suite.
    """
    recipe, outcomes = planned.recipe, []
    policy.model.eval()
    if len(heldout_rows) > 1 and recipe.evaluation.heldout_prompts:
        print(f"measuring: {len(heldout_rows)} held-out prompts, base and tuned", flush=True)
        outcomes.append(_heldout(recipe, policy, rewards, heldout_rows))
    for task, questions in planned.asked:
        print(f"measuring: {task.name}, {len(questions)} questions, base and tuned", flush=True)
        asked = [[{"role": "user", "content": question.prompt}] for question in questions]
        outcomes.append(scored(task, questions, _both_arms(policy, asked, task, recipe)))
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


def _heldout(recipe: Recipe, policy: Any, rewards: Any, rows: list) -> Outcome:
    """The reward models' raw score of both arms' answers to the held-out prompts, as a task of its own."""
    task = Task(
        "heldout-chat", "chat", 1, recipe.rollout.max_tokens, lambda _: [], None, metric="reward", temperature=1
    )
    said = _both_arms(policy, rows, task, recipe)
    verdicts = {}
    for arm, answers in said.items():
        conversations = chat_template.with_answers(rows, [samples[0].text for samples in answers])
        verdicts[arm] = [[Verdict(score, "", "the reward model's score")] for score in rewards.score(conversations)]
    questions = [Question(str(i), row[-1]["content"], "", "") for i, row in enumerate(rows)]
    return Outcome(task, questions, said, verdicts)


def _both_arms(policy: Any, asked: list[Messages], task: Task, recipe: Recipe) -> Said:
    """Each arm's answers to the same prompts with the same seed, `task.samples` a prompt: base with the adapter off,
    tuned with it on.
    """
    at_once, said = rows_at_once(policy.model, recipe.rollout.batch), {}
    repeated = [chat_template.formatted(policy.tokenizer, row) for row in asked for _ in range(task.samples)]
    for arm in ARMS:
        with policy.model.disable_adapter() if arm == "base" else nullcontext():
            answers = sampled_answers(policy, repeated, task.sampling(), at_once, recipe.seed)
        said[arm] = [answers[start : start + task.samples] for start in range(0, len(answers), task.samples)]
    return said
