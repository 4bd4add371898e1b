"""TRL's trainers, composed from a recipe and never subclassed."""

from pathlib import Path
from typing import Any

from grlo_lite import policy as policies
from grlo_lite import processes, prompts
from grlo_lite.errors import BadInput
from grlo_lite.recipe import Recipe


def trainer(
    recipe: Recipe,
    output_dir: Path,
    policy: policies.Policy,
    rewards: Any,
    rows: list[prompts.Messages],
    callbacks: list[Any],
    device: Any,
    micro: int,
) -> Any:
    """A GRPOTrainer or RLOOTrainer that samples `rollout.batch` completions a step in groups of one prompt each.

    The prompts come in their final order, one epoch long, so that a resumed run asks what the uninterrupted one would
    have asked. `micro` is the micro-batch of one process.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    steps, rollout, algorithm = recipe.budget.steps, recipe.rollout, recipe.algorithm
    asked = prompts.ordered(rows, steps * rollout.batch // rollout.group_size, recipe.seed)
    options = _shared_options(recipe, output_dir, device, micro)
    kind: Any
    if algorithm.name == "grpo":
        loss = "dr_grpo" if algorithm.loss == "auto" else algorithm.loss
        config = GRPOConfig(**options, loss_type=loss, scale_rewards=algorithm.scale_rewards)
        kind = GRPOTrainer
    else:
        config = RLOOConfig(**options, normalize_advantages=algorithm.scale_rewards == "batch")
        kind = RLOOTrainer
    made = kind(
        model=policy.model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": asked}),
        processing_class=policy.tokenizer,
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    made.create_model_card = lambda **_: (
        None
    )  # TRL would write one with every checkpoint; the run's own is closing.py's
    policies.without_reference_adapter(made.model)
    policies.trainable_in_fp32(made.model)
    return made


def _shared_options(recipe: Recipe, output_dir: Path, device: Any, micro: int) -> dict[str, Any]:
    """What TRL's configurations for GRPO and RLOO have in common."""
    from grlo_lite.hardware import float_dtype

    rollout, algorithm, optimizer = recipe.rollout, recipe.algorithm, recipe.optimizer
    accumulation = batch_an_update(recipe) // micro
    dtype = str(float_dtype(device)).removeprefix("torch.")
    return {
        "output_dir": str(output_dir),
        "seed": recipe.seed,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * algorithm.updates_per_rollout,
        "num_generations": rollout.group_size,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": 0,
        "chat_template_kwargs": policies.TEMPLATE_OPTIONS,
        "beta": algorithm.kl,
        "epsilon": algorithm.clip,
        "max_steps": recipe.budget.steps * algorithm.updates_per_rollout,
        "shuffle_dataset": False,
        "optim": {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}[optimizer.name],
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": round(optimizer.warmup * recipe.budget.steps * algorithm.updates_per_rollout),
        "max_grad_norm": optimizer.max_grad_norm,
        "weight_decay": 0.0,
        "use_cpu": device.type == "cpu",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gradient_checkpointing": device.type == "cuda",
        "save_strategy": "no",  # the journal asks for checkpoints, at rollout boundaries
        "logging_steps": 1,
        "report_to": list(recipe.logging.report_to) or "none",
        "disable_tqdm": True,
    }


def batch_an_update(recipe: Recipe) -> int:
    """Completions that one process has in each optimizer update.

    Raises BadInput where the processes cannot share them equally.
    """
    whole, sharing = recipe.rollout.batch // recipe.algorithm.updates_per_rollout, processes.count()
    if whole % sharing:
        raise BadInput(
            f"{sharing} processes cannot share the {whole} completions of an update (rollout.batch / "
            "algorithm.updates_per_rollout) equally; change one of them"
        )
    return whole // sharing


def micro_batch(recipe: Recipe, device: Any) -> int:
    """Completions a forward and backward pass of one process: what the recipe says; `auto` is all of them on a CPU and
    at most 4 on a GPU. Raises BadInput where the recipe's number does not divide what a process has.
    """
    wanted, batch = recipe.optimizer.micro_batch, batch_an_update(recipe)
    if wanted == "auto":
        return batch if device.type == "cpu" else max(size for size in (1, 2, 3, 4) if batch % size == 0)
    if batch % wanted:
        raise BadInput(
            f"optimizer.micro_batch={wanted} does not divide the {batch} completions that each of {processes.count()} "
            "processes has in an update; choose a divisor"
        )
    return wanted
