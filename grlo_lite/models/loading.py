"""From a recipe to loaded models, in the order that Unsloth's patches demand."""

from typing import Any

from grlo_lite.models.backends import engine
from grlo_lite.models.names import judge_path, policy_path
from grlo_lite.recipe.schema import Heldout, Judge, Recipe


def device_and_backend(recipe: Recipe) -> tuple[Any, str]:
    """Where the run computes and who loads its policy; imports Unsloth, if it is that, before all that Unsloth
    patches.
    """
    from grlo_lite.machine.device import this_device
    from grlo_lite.models import backends

    device = this_device()
    backend = backends.chosen_backend(recipe.backend, device)
    chosen = engine(recipe, device, backend)
    if backend == "unsloth":
        backends.import_unsloth(chosen == "fast_inference")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return device, backend


def load_policy(recipe: Recipe, device: Any, backend: str) -> Any:
    """The recipe's base model with a fresh adapter. Raises BadInput where it cannot be loaded."""
    from grlo_lite.models import policy as policies

    return policies.load(
        policy_path(recipe),
        recipe.model.revision,
        recipe.model.quantization,
        recipe.lora,
        backend,
        device,
        recipe.prompts.max_tokens + recipe.rollout.max_tokens,
        recipe.seed,
        recipe.rollout.vllm_memory if engine(recipe, device, backend) == "fast_inference" else None,
        recipe.model.eos_token,
    )


def load_policy_and_judges(recipe: Recipe, device: Any, backend: str) -> tuple[Any, list[tuple[str, float, Any]]]:
    """The policy, and each reward model with its name and weight.

    Raises BadInput where a reward model scores otherwise once the policy is loaded, as it does when the policy's
    loader patches the classes of both.
    """
    from grlo_lite.models import reward_model

    judges = [(judge.name, judge.weight, load_judge(recipe, judge, device)) for judge in recipe.reward.judges]
    alone = [reward_model.fixed_scores(model) for _, _, model in judges]
    policy = load_policy(recipe, device, backend)
    for (name, _, model), scores in zip(judges, alone, strict=True):
        reward_model.require_unchanged(name, scores, reward_model.fixed_scores(model))
        if recipe.reward.tokens_per_batch == "auto":
            model.tokens_per_batch = reward_model.tokens_that_fit(model.model, device)
    return policy, judges


def load_judge(recipe: Recipe, judge: Judge | Heldout, device: Any) -> Any:
    """One of the recipe's reward models. Raises BadInput where it cannot be loaded or has no one-logit head."""
    from grlo_lite.models import reward_model

    limits = recipe.reward.max_tokens, recipe.reward.tokens_per_batch
    return reward_model.load(judge_path(judge.name or ""), judge.revision, judge.quantization, device, *limits)
