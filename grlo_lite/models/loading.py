"""From a recipe to loaded models, in the order that Unsloth's patches demand."""

from typing import Any

from grlo_lite.models.backends import Place
from grlo_lite.recipe.schema import Heldout, Judge, Recipe


def load_policy(recipe: Recipe, place: Place) -> Any:
    """The recipe's base model with a fresh adapter, or with the first stage's. Raises BadInput where it cannot be
    loaded.
    """
    from grlo_lite.models import first_stage
    from grlo_lite.models import policy as policies

    longest = recipe.prompts.max_tokens + recipe.rollout.max_tokens
    vllm_memory = recipe.rollout.vllm_memory if place.engine == "fast_inference" else None
    policy = policies.load(recipe.model, recipe.lora, place, longest, recipe.seed, vllm_memory)
    if (first := first_stage.found(recipe)) is not None:
        first_stage.put_on(policy, first)
    return policy


def load_policy_and_judges(recipe: Recipe, place: Place) -> tuple[Any, list[tuple[str, float, Any]]]:
    """The policy, and each reward model with its name and weight.

    Raises BadInput where a reward model scores otherwise once the policy is loaded, as it does when the policy's
    loader patches the classes of both.
    """
    from grlo_lite.models import reward_model

    judges = [(judge.name, judge.weight, load_judge(recipe, judge, place.device)) for judge in recipe.reward.judges]
    alone = [reward_model.fixed_scores(model) for _, _, model in judges]
    policy = load_policy(recipe, place)
    for (name, _, model), scores in zip(judges, alone, strict=True):
        reward_model.require_unchanged(name, scores, reward_model.fixed_scores(model))
        if recipe.reward.tokens_per_batch == "auto":
            model.tokens_per_batch = reward_model.tokens_that_fit(model.model, place.device)
    return policy, judges


def load_judge(recipe: Recipe, judge: Judge | Heldout, device: Any) -> Any:
    """One of the recipe's reward models. Raises BadInput where it cannot be loaded or has no one-logit head."""
    from grlo_lite.models import reward_model

    reward = recipe.reward
    return reward_model.load(judge, device, reward.max_tokens, reward.tokens_per_batch, recipe.cpu_dtype)
