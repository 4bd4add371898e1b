"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from grlo_lite.evaluation.paired_statistics import PairedDifference, mean_of_differences, paired_difference
from grlo_lite.evaluation.results import ARMS, task_row
from grlo_lite.generation import answers as answers_module
from grlo_lite.generation.answers import sampled_answers
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import aligned, numbers


def closing_table(evaluation: dict[str, Any], run: RunDir) -> str:
    """The last lines of a run: base against tuned with 95 % intervals, and what to type next."""
    rows: list[tuple[str, ...]] = [("", "questions", "base", "tuned", "difference", "95 % interval")]
    for task in evaluation["tasks"]:
        rows.append((f"{task['domain']} ({task['metric']})", str(task["n"]), *numbers(task)))
    if "average" in evaluation:
        rows.append(("average accuracy", "", *numbers(evaluation["average"])))
    lines = aligned(rows, left=1)
    commands = {
        f"python -m grlo_lite.evaluate {run.path}": "in full: both kinds of base, chat judged, answers kept",
        f"head -n 4 {run.samples}": "what was said at the first step",
        "python -m grlo_lite.train seed=1": "the same with another seed",
        "python -m grlo_lite.train reward.shuffle=true": "the control: shuffled rewards must teach nothing",
    }
    width = max(map(len, commands))
    following = [f"  {command.ljust(width)}  # {note}" for command, note in commands.items()]
    return "\n".join(["", *lines, "", f"the adapter is in {run.adapter}; next:", *following])


Messages = list[dict[str, str]]


def both_arms(
    model: Any, tokenizer: Any, prompts: list[Messages], formatted: Callable[[Messages], str], **sampling: Any
) -> dict[str, list[str]]:
    """Each arm's answers to the same prompts with the same seed: base with the adapter off, tuned with it on."""
    model.eval()
    texts = [formatted(prompt) for prompt in prompts]
    said = {}
    for arm in ARMS:
        with model.disable_adapter() if arm == "base" else nullcontext():
            said[arm] = sampled_answers(model, tokenizer, texts, **sampling)
    return said


def heldout_reward(
    model: Any,
    tokenizer: Any,
    prompts: list[Messages],
    formatted: Callable[[Messages], str],
    score: Callable[[list[Messages]], list[float]],
    **sampling: Any,
) -> PairedDifference:
    """The reward model's raw score of both arms' answers to prompts that were kept out of training."""
    said = both_arms(model, tokenizer, prompts, formatted, **sampling)
    scores = {
        arm: np.array(score([[*p, {"role": "assistant", "content": a}] for p, a in zip(prompts, texts, strict=True)]))
        for arm, texts in said.items()
    }
    return paired_difference(scores["base"], scores["tuned"])


def microcosm_accuracies(
    model: Any, tokenizer: Any, formatted: Callable[[Messages], str], questions: int, seed: int, **sampling: Any
) -> dict[str, PairedDifference]:
    """Both arms' accuracy in each verifiable domain of the microcosm, on questions that nothing was trained on."""
    from grlo_lite.microcosm import world

    accuracies = {}
    for domain in world.VERIFIABLE:
        asked = world.exam(domain, questions, seed)
        prompts = [[{"role": "user", "content": question.text}] for question in asked]
        said = both_arms(model, tokenizer, prompts, formatted, seed=seed, **sampling)
        right = {
            arm: np.array([float(world.is_right(q, a)) for q, a in zip(asked, texts, strict=True)])
            for arm, texts in said.items()
        }
        accuracies[domain] = paired_difference(right["base"], right["tuned"])
    return accuracies


def evaluation(suite: str, heldout: PairedDifference | None, accuracies: dict[str, PairedDifference]) -> dict[str, Any]:
    """The content of evaluation.json: a task each, and the average of the accuracies (the reward is on another
    scale).
    """
    tasks = [task_row("heldout-chat", "chat", "reward", heldout)] if heldout else []
    tasks += [task_row(f"microcosm-{domain}", domain, "accuracy", d) for domain, d in accuracies.items()]
    average = mean_of_differences(list(accuracies.values())) if accuracies else None
    return {"suite": suite, "arms": list(ARMS), "tasks": tasks, **({"average": average} if average else {})}


def measured_run(recipe: Recipe, policy: Any, rewards: Any, heldout_rows: list) -> dict[str, Any]:
    """Base against tuned on the held-out prompts and on the recipe's suite, as evaluation.json holds it."""
    from grlo_lite.models import chat_template

    sampling, formatted = answers_module.sampling(recipe, policy), partial(chat_template.formatted, policy.tokenizer)
    heldout, accuracies = None, {}
    if len(heldout_rows) > 1 and recipe.evaluation.heldout_prompts:
        print(f"measuring: {len(heldout_rows)} held-out prompts, base and tuned", flush=True)
        heldout = heldout_reward(
            policy.model, policy.tokenizer, heldout_rows, formatted, rewards.score, seed=recipe.seed, **sampling
        )
    if recipe.evaluation.suite == "microcosm":
        print(f"measuring: {recipe.evaluation.limit} questions a domain, base and tuned", flush=True)
        accuracies = microcosm_accuracies(
            policy.model, policy.tokenizer, formatted, recipe.evaluation.limit, recipe.seed, **sampling
        )
    return evaluation(recipe.evaluation.suite, heldout, accuracies)
