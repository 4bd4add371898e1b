"""The cheapest change that makes a recipe fit."""

from collections.abc import Callable
from typing import Any

from grlo_lite.planning.cards import Card
from grlo_lite.planning.planner import REWARD_TOKENS, plan, planned_engine
from grlo_lite.recipe.loading import changed
from grlo_lite.recipe.schema import Recipe

SMALLER_JUDGES = ("Skywork/Skywork-Reward-V2-Qwen3-1.7B", "Skywork/Skywork-Reward-V2-Qwen3-0.6B")


SMALLER_POLICIES = {
    "Qwen/Qwen3-1.7B-Base": "ea980cb0a6c2ae4b936e82123acc929f1cec04c1",
    "Qwen/Qwen3-0.6B-Base": "da87bfb608c14b7cf20ba1ce41287e8de496c0cd",
}


def cheapest_change(recipe: Recipe, card: Card) -> str | None:
    """The overrides, as `section.key=value …`, that make a recipe fit and change least of what is learnt, beside sizes
    as large as fit with them; None where it fits, or where nothing makes it fit.
    """
    if plan(recipe, card).fits:
        return None
    sizes = _smaller_sizes(recipe, card)
    smallest = {key: values[-1] for key, values in sizes.items()}

    def fits(changes: dict[str, Any]) -> bool:
        return plan(changed(recipe, changes), card).fits

    for key, values in sizes.items():
        for value in values:
            if fits({key: value}):
                return _overrides({key: value})
    gathered: dict[str, Any] = {}
    for change in ({}, *_changes(recipe)):
        for learnt in (change, gathered | change):
            if fits(smallest | learnt):
                return _overrides(_no_smaller_than_needed(sizes, learnt, fits))
        gathered |= change
    return None


def _overrides(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())


def _no_smaller_than_needed(
    sizes: dict[str, list[Any]], learnt: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Changes that fit with the smallest sizes, without those that can be left out, the last first, and with each size
    as it was, or as large as fits.
    """
    smallest = {key: values[-1] for key, values in sizes.items()}
    for key in reversed(list(learnt)):
        together = {key.replace(".revision", ".name"), key.replace(".name", ".revision")}  # a model and its commit
        without = {k: v for k, v in learnt.items() if k not in together}
        if fits(smallest | without):
            learnt = without
    chosen = dict(smallest)
    for key, values in sizes.items():
        others = {k: v for k, v in chosen.items() if k != key}
        if fits(others | learnt):
            chosen = others
            continue
        chosen[key] = next(value for value in values if fits(others | {key: value} | learnt))
    return chosen | learnt


def _smaller_sizes(recipe: Recipe, card: Card) -> dict[str, list[Any]]:
    """What a recipe says itself and could say smaller, with the same result in more time; from large to small."""
    sizes: dict[str, list[Any]] = {}
    an_update, micro = recipe.rollout.batch // recipe.algorithm.updates_per_rollout, recipe.optimizer.micro_batch
    if micro != "auto":
        sizes["optimizer.micro_batch"] = [n for n in range(micro - 1, 0, -1) if an_update % n == 0]
    if recipe.reward.tokens_per_batch != "auto":
        wanted = recipe.reward.tokens_per_batch
        sizes["reward.tokens_per_batch"] = [n for n in REWARD_TOKENS if n < wanted]
    if recipe.optimizer.gradient_checkpointing is False:
        sizes["optimizer.gradient_checkpointing"] = [True]
    if planned_engine(recipe, card) == "fast_inference":
        sizes["rollout.vllm_memory"] = [n / 20 for n in range(19, 0, -1) if n / 20 < recipe.rollout.vllm_memory]
    elif recipe.rollout.engine == "generate":
        sizes["rollout.engine"] = ["compact"]
    return {key: values for key, values in sizes.items() if values}


def _changes(recipe: Recipe) -> list[dict[str, Any]]:
    """From what changes least of what is learnt to another model; only what differs from the recipe."""
    ladder = [
        {"optimizer.name": "adamw_8bit"},
        {"model.quantization": "nf4"},
        {"reward.quantization": "nf4"},
        *({"rollout.max_tokens": n} for n in (2048, 1024, 512) if n < recipe.rollout.max_tokens),
        {"prompts.max_tokens": min(512, recipe.prompts.max_tokens)},
        *({"reward.name": name, "reward.revision": "main"} for name in SMALLER_JUDGES),
        *({"model.name": name, "model.revision": commit} for name, commit in SMALLER_POLICIES.items()),
    ]
    now = recipe.model_dump()
    different = [{k: v for k, v in c.items() if now[k.split(".")[0]][k.split(".")[1]] != v} for c in ladder]
    return [change for change in different if change and not set(change) <= {"model.revision", "reward.revision"}]
