"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from grlo_lite.generation import Sampling, answers, seeded
from grlo_lite.stats import PairedDifference, mean_of_differences, paired_difference

Messages = list[dict[str, str]]
ARMS = ("base", "tuned")


def sampled_answers(
    model: Any, tokenizer: Any, texts: list[str], max_tokens: int, rows_at_once: int, seed: int
) -> list[str]:
    """One answer a formatted prompt, sampled at temperature 1 as in training, in order; the same for the same
    seed and batch size.

    Leaves the global random state as it found it.
    """
    sampling = Sampling(max_tokens)
    said: list[str] = []
    with seeded(model, seed):
        for start in range(0, len(texts), rows_at_once):
            said += [a.text for a in answers(model, tokenizer, texts[start : start + rows_at_once], sampling)]
    return said


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


def task_row(name: str, domain: str, metric: str, difference: PairedDifference) -> dict[str, Any]:
    """One task of evaluation.json."""
    numbers = asdict(difference)
    del numbers["standard_error"]
    return {"task": name, "domain": domain, "metric": metric, **numbers}
