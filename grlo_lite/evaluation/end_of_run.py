"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run.

It answers every question anew, in batches of its own, where `evaluate` keeps and takes answers from a store; tasks,
scorers, statistics and the form of evaluation.json and answers.jsonl are the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.evaluation.results import ARMS, Outcome, answer_rows, evaluation, scored, table
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.task import Asked, Question, Said, Task, Verdict
from grlo_lite.generation import decoders
from grlo_lite.generation.answers import rows_at_once, sampled_answers, tokens_at_once
from grlo_lite.generation.decoders import Decoding
from grlo_lite.models import chat_template, first_stage, trained_adapter
from grlo_lite.models.chat_template import Messages
from grlo_lite.models.trained_adapter import Stage
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.layout import RunDir


@dataclass(frozen=True)
class Measurement:
    """What will be asked at the end of a run: the suite's tasks with their questions, and what had to be left out."""

    recipe: Recipe
    asked: Asked
    missing: list[str]


@dataclass(frozen=True)
class Answering:
    """Who answers: a loaded policy as each of its arms, by an engine."""

    policy: Any
    decoding: Decoding
    arms: tuple[str, ...]


def measurement(recipe: Recipe) -> Measurement:
    """The measurement that a recipe asks for, with its questions at hand before the first step.

    Tasks that only a judge can score are left to `evaluate`. Raises BadInput where nothing of the suite can be asked.
    """
    wanted = recipe.evaluation
    if wanted.suite == "none":
        return Measurement(recipe, [], [])
    limits = suites.Limits(limit=wanted.limit, data_dir=Path(wanted.data_dir) if wanted.data_dir else None)
    return Measurement(recipe, *suites.suite_questions(wanted.suite, suites.run_tasks(recipe), limits))


def answer_bytes(planned: Measurement, heldout_prompts: int) -> int:
    """What answers.jsonl takes on the disk, about and at most: each arm's answers at full length, at six bytes a token,
    with their questions and what is said of them.
    """
    recipe = planned.recipe
    a_token, a_row = 6, 400
    heldout = heldout_prompts if recipe.evaluation.heldout_prompts and heldout_prompts > 1 else 0
    an_arm = heldout * (a_row + a_token * (recipe.prompts.max_tokens + recipe.rollout.max_tokens))
    for task, questions in planned.asked:
        texts = sum(len(question.prompt.encode()) + len(question.reference.encode()) for question in questions)
        an_arm += task.samples * (texts + len(questions) * (a_row + a_token * task.max_tokens))
    return (len(ARMS) + len(first_stage.lineage(first_stage.found(recipe)))) * an_arm


def measured(
    planned: Measurement, policy: Any, rewards: Any, heldout_rows: list, stages: tuple[Stage, ...] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """evaluation.json and the rows of answers.jsonl of a trained policy: the reward of the answers to prompts that were
    kept out of training, and the suite. The `stages` that it went on from are arms of their own. A run whose rollouts
    are vLLM's is measured by vLLM, base and tuned as requests to one.
    """
    policy.model.eval()
    engine = "vllm" if planned.recipe.rollout.engine == "vllm" else "kit"
    with (
        trained_adapter.stages_loaded(policy.model, stages),
        decoders.decoding(engine, policy.model, tokens_at_once(policy.model)) as decoding,
    ):
        arms = (*ARMS, *(stage.arm for stage in stages))
        return _measured(planned, Answering(policy, decoding, arms), rewards, heldout_rows)


def _measured(
    planned: Measurement, answering: Answering, rewards: Any, heldout_rows: list
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    recipe, outcomes, arms = planned.recipe, [], answering.arms
    if len(heldout_rows) > 1 and recipe.evaluation.heldout_prompts:
        print(f"measuring: {len(heldout_rows)} held-out prompts, {_named(arms)}", flush=True)
        outcomes.append(_heldout(recipe, answering, rewards, heldout_rows))
    for task, questions in planned.asked:
        print(f"measuring: {task.name}, {len(questions)} questions, {_named(arms)}", flush=True)
        asked = [[{"role": "user", "content": question.prompt}] for question in questions]
        outcomes.append(scored(task, questions, _of_arms(answering, asked, task, recipe)))
    found = evaluation(recipe.evaluation.suite, outcomes, planned.missing, {"seed": recipe.seed})
    return found, answer_rows(outcomes)


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


def _heldout(recipe: Recipe, answering: Answering, rewards: Any, rows: list) -> Outcome:
    """The raw score of each arm's answers to the held-out prompts, as a task of its own."""
    name, domain = ("heldout-chat", "chat") if recipe.reward.judges else ("heldout-prompts", "held-out prompts")
    task = Task(name, domain, 1, recipe.rollout.max_tokens, lambda _: [], None, metric="reward", temperature=1)
    said = _of_arms(answering, rows, task, recipe)
    verdicts = {}
    for arm, answers in said.items():
        conversations = chat_template.with_answers(rows, [samples[0].text for samples in answers])
        verdicts[arm] = [[Verdict(score, "", "the reward's raw score")] for score in rewards.score(conversations)]
    questions = [Question(str(i), row[-1]["content"], "", "") for i, row in enumerate(rows)]
    return Outcome(task, questions, said, verdicts)


def _of_arms(answering: Answering, asked: list[Messages], task: Task, recipe: Recipe) -> Said:
    """Each arm's answers to the same prompts with the same seed, `task.samples` a prompt: base with the adapter off,
    tuned with it on, a stage with its own.
    """
    policy, said = answering.policy, {}
    at_once = rows_at_once(policy.model, recipe.rollout.batch)
    repeated = [chat_template.formatted(policy.tokenizer, row) for row in asked for _ in range(task.samples)]
    for arm in answering.arms:
        with trained_adapter.in_effect(policy.model, arm):
            answers = sampled_answers(policy, repeated, task.sampling(), at_once, recipe.seed, answering.decoding)
        said[arm] = [answers[start : start + task.samples] for start in range(0, len(answers), task.samples)]
    return said
