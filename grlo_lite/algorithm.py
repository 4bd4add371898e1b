"""TRL's trainers, composed from a recipe and never subclassed."""

from functools import partial
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
    engine: str = "generate",
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
    options = _shared_options(recipe, output_dir, device, micro) | engine_options(engine, policy.tokenizer)
    kind: Any
    if algorithm.name == "grpo":
        loss = "dr_grpo" if algorithm.loss == "auto" else algorithm.loss
        config = GRPOConfig(**options, loss_type=loss, scale_rewards=algorithm.scale_rewards)
        kind = GRPOTrainer
    else:
        config = RLOOConfig(**options, normalize_advantages=algorithm.scale_rewards == "batch")
        kind = RLOOTrainer
    if device.type == "cpu":  # one of several CPU processes is told "cpu:0", onto which torch.load restores nothing
        vars(config)["_setup_devices"] = device
    made = kind(
        model=policy.model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": asked}),
        processing_class=policy.tokenizer,
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    # TRL and PEFT would each write one with every checkpoint, which takes most of its time; the run has its own
    made.create_model_card = made.model.create_or_update_model_card = _no_card
    if recipe.lora.targets == "all-linear":  # no embeddings; to see that, PEFT would read the base's config every time
        made.model.save_pretrained = partial(made.model.save_pretrained, save_embedding_layers=False)
    if policy.backend == "transformers":  # Unsloth's trainer packs for itself
        made._prepare_inputs = _without_padding(made, algorithm.updates_per_rollout, sort=algorithm.loss != "bnpo")
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
        "gradient_checkpointing": checkpointing(optimizer.gradient_checkpointing, device),
        "save_strategy": "no",  # the journal asks for checkpoints, at rollout boundaries
        "logging_steps": 1,
        "report_to": list(recipe.logging.report_to) or "none",
        "disable_tqdm": True,
    }


def _no_card(*_: Any, **__: Any) -> None:
    return None


def engine_options(engine: str, tokenizer: Any) -> dict[str, Any]:
    """What TRL has to be told of a rollout engine: that it is the vLLM inside Unsloth's model, and the stop tokens.

    vLLM reads those off the base model's own files, which know no end of turn.
    """
    if engine != "fast_inference":
        return {}
    stops = {"stop_token_ids": policies.stop_token_ids(tokenizer)}
    return {"use_vllm": True, "vllm_mode": "colocate", "generation_kwargs": stops}


def _without_padding(trainer: Any, updates: int, sort: bool) -> Any:
    """TRL's `_prepare_inputs`, with micro-batches of completions of like length, longest first, cut to their own width.

    TRL pads every completion of a step to the longest and shuffles them. Completions are sorted within an optimizer
    update, whose gradient does not depend on their order (but for the loss `bnpo`, which weights a micro-batch by its
    own tokens and is left as it is); the longest come first, so that a step that does not fit fails at once.
    """
    prepare = trainer._prepare_inputs
    seen: list[Any] = [None]

    def prepared(batch: Any) -> dict[str, Any]:
        inputs = prepare(batch)
        if not trainer.model.training:
            return inputs
        buffered = trainer._buffered_inputs
        if buffered is not seen[0]:
            size = len(buffered) // updates
            windows = [buffered[start : start + size] for start in range(0, len(buffered), size)]
            buffered = [trimmed(micro) for window in windows for micro in (by_length(window) if sort else window)]
            trainer._buffered_inputs = seen[0] = buffered
        return buffered[trainer._step % trainer.args.steps_per_generation]

    return prepared


def by_length(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in micro-batches of the same sizes, longest completions first."""
    import torch

    if len(micro_batches) == 1:
        return micro_batches
    lengths = torch.cat([micro["completion_mask"].sum(1) for micro in micro_batches])
    order_N = lengths.argsort(descending=True, stable=True)
    size = len(micro_batches[0]["completion_mask"])
    joined = {
        key: torch.cat([micro[key] for micro in micro_batches])[order_N] if value.ndim else value
        for key, value in micro_batches[0].items()
    }
    return [
        {key: value[start : start + size] if value.ndim else value for key, value in joined.items()}
        for start in range(0, len(order_N), size)
    ]


def trimmed(micro: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch without the columns in which no prompt, or no completion, has a token."""
    first = int(micro["prompt_mask"].any(0).int().argmax())
    last = max(1, int(micro["completion_mask"].sum(1).max()))
    columns = micro["completion_mask"].shape[1]
    cut = {key: value[:, :last] for key, value in micro.items() if value.ndim == 2 and value.shape[1] == columns}
    return micro | cut | {key: micro[key][:, first:] for key in ("prompt_ids", "prompt_mask")}


def checkpointing(wanted: bool | str, device: Any) -> bool:
    """Whether the update computes activations again instead of keeping them; `auto` is yes on a GPU."""
    return device.type == "cuda" if wanted == "auto" else bool(wanted)


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
