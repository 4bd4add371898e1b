"""Base against tuned on the same questions, from one loaded model: the measurement that ends a run."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from grlo_lite.stats import PairedDifference, mean_of_differences, paired_difference

Messages = list[dict[str, str]]
ARMS = ("base", "tuned")


def sampled_answers(
    model: Any, tokenizer: Any, texts: list[str], max_tokens: int, rows_at_once: int, seed: int
) -> list[str]:
    """One answer a formatted prompt, sampled at temperature 1 as in training, in order; the same for the same seed
    and batch size.

    Leaves the global random state as it found it.
    """
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: list[str] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(texts), rows_at_once):
            batch = tokenizer(
                texts[start : start + rows_at_once],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            ).to(model.device)
            tokens_BT = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config
            )
            answers += tokenizer.batch_decode(tokens_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def both_arms(
    model: Any, tokenizer: Any, prompts: list[Messages], formatted: Callable[[Messages], str], **sampling: Any
) -> dict[str, list[str]]:
    """Each arm's answers to the same prompts with the same seed: base with the adapter off, tuned with it on."""
    model.eval()
    texts = [formatted(prompt) for prompt in prompts]
    answers = {}
    for arm in ARMS:
        with model.disable_adapter() if arm == "base" else nullcontext():
            answers[arm] = sampled_answers(model, tokenizer, texts, **sampling)
    return answers


def heldout_reward(
    model: Any,
    tokenizer: Any,
    prompts: list[Messages],
    formatted: Callable[[Messages], str],
    score: Callable[[list[Messages]], list[float]],
    **sampling: Any,
) -> PairedDifference:
    """The reward model's raw score of both arms' answers to prompts that were kept out of training."""
    answers = both_arms(model, tokenizer, prompts, formatted, **sampling)
    scores = {
        arm: np.array(score([[*p, {"role": "assistant", "content": a}] for p, a in zip(prompts, texts, strict=True)]))
        for arm, texts in answers.items()
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
        answers = both_arms(model, tokenizer, prompts, formatted, seed=seed, **sampling)
        right = {
            arm: np.array([float(world.is_right(q, a)) for q, a in zip(asked, texts, strict=True)])
            for arm, texts in answers.items()
        }
        accuracies[domain] = paired_difference(right["base"], right["tuned"])
    return accuracies


def evaluation(suite: str, heldout: PairedDifference | None, accuracies: dict[str, PairedDifference]) -> dict[str, Any]:
    """The content of evaluation.json: a task each, and the average of the accuracies (the reward is on another
    scale).
    """
    tasks = [_task("heldout-chat", "chat", "reward", heldout)] if heldout else []
    tasks += [_task(f"microcosm-{domain}", domain, "accuracy", d) for domain, d in accuracies.items()]
    average = mean_of_differences(list(accuracies.values())) if accuracies else None
    return {"suite": suite, "arms": list(ARMS), "tasks": tasks, **({"average": average} if average else {})}


def _task(name: str, domain: str, metric: str, difference: PairedDifference) -> dict[str, Any]:
    numbers = asdict(difference)
    del numbers["standard_error"]
    return {"task": name, "domain": domain, "metric": metric, **numbers}
