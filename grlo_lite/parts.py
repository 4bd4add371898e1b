"""From a recipe to its parts: model paths, prompts, policy, reward models; what train, doctor and their like begin
with.
"""

from pathlib import Path
from typing import Any

from grlo_lite import microcosm, prompts
from grlo_lite.recipe import BadInput, Heldout, Judge, Recipe


def policy_path(recipe: Recipe) -> str:
    return _model_path("model.name", recipe.model.name, microcosm.POLICY)


def model_paths(recipe: Recipe) -> list[str]:
    """Every model of the recipe as a path or a Hub id. Raises BadInput where a path leads nowhere."""
    heldout = recipe.reward.heldout.name
    names = [judge.name for judge in recipe.reward.judges] + ([heldout] if heldout else [])
    return [policy_path(recipe), *map(_judge_path, names)]


def _judge_path(name: str) -> str:
    if name == "microcosm-heldout":
        return str(microcosm.HELDOUT)
    return _model_path("reward.name", name, microcosm.REWARD)


def _model_path(key: str, name: str, shipped: Path) -> str:
    """`microcosm` means the shipped model; a path must exist; all else is a model of the Hub."""
    if name == "microcosm":
        return str(shipped)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise BadInput(
            f"{key}={name!r}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or microcosm"
        )
    return name


def prompt_rows(recipe: Recipe) -> tuple[list[prompts.Messages], list[prompts.Messages]]:
    """The prompts that fit, split into those to train on and those to measure on."""
    from grlo_lite.policy import formatted, load_tokenizer

    rows = prompts.load(recipe.prompts.source, recipe.prompts.limit)
    tokenizer = load_tokenizer(policy_path(recipe), recipe.model.revision)

    def token_count(messages: prompts.Messages) -> int:
        return len(tokenizer(formatted(tokenizer, messages), add_special_tokens=False)["input_ids"])

    fitting, over = prompts.fitted(rows, token_count, recipe.prompts.max_tokens, recipe.prompts.overlong)
    if over:
        done = "cut to their ends" if recipe.prompts.overlong == "truncate" else "left out"
        print(f"prompts: {over} of {len(rows)} were longer than prompts.max_tokens={recipe.prompts.max_tokens}, {done}")
    train_rows, heldout_rows = prompts.split(fitting, recipe.heldout_prompts, recipe.seed)
    print(f"prompts: {len(train_rows)} to train on, {len(heldout_rows)} held out", flush=True)
    return train_rows, heldout_rows


def device_and_backend(recipe: Recipe) -> tuple[Any, str]:
    """Where the run computes and who loads its policy; imports Unsloth, if it is that, before all that Unsloth
    patches.
    """
    from grlo_lite import hardware
    from grlo_lite import policy as policies

    device = hardware.device()
    backend = policies.chosen_backend(recipe.backend, device)
    if backend == "unsloth":
        policies.import_unsloth()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return device, backend


def load_policy(recipe: Recipe, device: Any, backend: str) -> Any:
    """The recipe's base model with a fresh adapter. Raises BadInput where it cannot be loaded."""
    from grlo_lite import policy as policies

    return policies.load(
        policy_path(recipe),
        recipe.model.revision,
        recipe.model.quantization,
        recipe.lora,
        backend,
        device,
        recipe.prompts.max_tokens + recipe.rollout.max_tokens,
        recipe.seed,
    )


def load_judge(recipe: Recipe, judge: Judge | Heldout, device: Any) -> Any:
    """One of the recipe's reward models. Raises BadInput where it cannot be loaded or has no one-logit head."""
    from grlo_lite import reward

    limits = recipe.reward.max_tokens, recipe.reward.tokens_per_batch
    return reward.load(_judge_path(judge.name or ""), judge.revision, judge.quantization, device, *limits)


def sampling(recipe: Recipe, policy: Any) -> dict[str, int]:
    """How many tokens an answer may have outside of training, and how many answers are sampled at once."""
    on_gpu = policy.model.device.type == "cuda"
    return {"max_tokens": recipe.rollout.max_tokens, "rows_at_once": recipe.rollout.batch if on_gpu else 512}
