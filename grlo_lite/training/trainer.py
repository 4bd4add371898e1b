"""TRL's trainers, composed from a recipe and never subclassed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from grlo_lite import prompts
from grlo_lite.machine import device as machine_device
from grlo_lite.models import chat_template
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.models.critic import Critic
from grlo_lite.recipe.schema import Recipe
from grlo_lite.training import trl_inside
from grlo_lite.training.algorithms import ALGORITHMS
from grlo_lite.training.micro_batches import arranged, batch_an_update
from grlo_lite.training.ppo import Kept, learn_with_a_critic
from grlo_lite.training.sampler_drift import corrected


@dataclass(frozen=True)
class Materials:
    """What a trainer is composed of beside its recipe: the policy, what TRL asks for rewards, the prompts, and PPO's
    critic.
    """

    policy: policies.Policy
    reward: Callable[..., list[float | None]]
    rows: list[prompts.Messages]
    place: Place
    critic: Critic | None = None
    sampler: Any = None  # that TRL samples through where it does not call `generate`
    drift: dict[str, float] = field(default_factory=dict)  # where it is put how far that is from the policy


def composed_trainer(recipe: Recipe, materials: Materials, output_dir: Path, callbacks: list[Any], micro: int) -> Any:
    """TRL's trainer for the recipe's algorithm, which samples `rollout.batch` completions a step in groups of one
    prompt each.

    The prompts come in their final order, one epoch long, so that a resumed run asks what the uninterrupted one would
    have asked. `micro` is the micro-batch of one process.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    policy, device = materials.policy, materials.place.device
    steps, rollout, algorithm = recipe.budget.steps, recipe.rollout, recipe.algorithm
    rows = materials.rows
    asked = prompts.ordered(range(len(rows)), steps * rollout.batch // rollout.group_size, recipe.seed)
    options = _shared_options(recipe, output_dir, device, micro)
    options |= engine_options(materials.place.engine, policy.tokenizer)
    kind, config = ALGORITHMS[algorithm.name](algorithm, options)
    rewards = Kept(materials.reward)
    trl_inside.use_one_gpu(config)
    if device.type == "cpu":
        trl_inside.set_device(config, device)
    made = kind(
        model=policy.model,
        reward_funcs=rewards if materials.critic else materials.reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [list(rows[i]) for i in asked], "row": asked}),
        processing_class=policy.tokenizer,
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    if recipe.reward.truncated.mode == "mask":  # TRL would print a masked completion in full at each step
        logging.getLogger(kind.__module__).addFilter(lambda record: "returned None" not in record.getMessage())
    # TRL and PEFT would each write one with every checkpoint, which takes most of its time; the run has its own
    made.create_model_card = made.model.create_or_update_model_card = lambda *_, **__: None
    saved: dict[str, Any] = {"selected_adapters": ["default"]}  # of two, Trainer would restore none
    if recipe.lora.targets == "all-linear":  # no embeddings; to see that, PEFT would read the base's config every time
        saved["save_embedding_layers"] = False
    made.model.save_pretrained = partial(made.model.save_pretrained, **saved)
    if materials.critic is not None:
        learn_with_a_critic(made, recipe, materials.critic, rewards)
    if policy.backend == "transformers":  # Unsloth's trainer packs for itself
        updates, sort = algorithm.updates_per_rollout, algorithm.loss != "bnpo"
        trl_inside.arrange_micro_batches(made, partial(arranged, updates=updates, sort=sort))
    if materials.sampler is not None:
        trl_inside.sample_through(made, materials.sampler)
        trl_inside.change_each_rollout(made, partial(corrected, materials.sampler, materials.drift))
    begin_with_a_small_loss_scale(made.accelerator.scaler)
    policies.without_reference_adapter(made.model)
    policies.trainable_in_fp32(made.model)
    return made


def begin_with_a_small_loss_scale(scaler: Any) -> None:
    """In fp16: the scaler's own first scale, 2^16, overflows on most models, and each overflow costs a rollout."""
    if scaler is not None and (state := scaler.state_dict()):
        scaler.load_state_dict(state | {"scale": 2.0**10})


def _shared_options(recipe: Recipe, output_dir: Path, device: Any, micro: int) -> dict[str, Any]:
    """What TRL's configurations for GRPO and RLOO have in common."""
    rollout, algorithm, optimizer = recipe.rollout, recipe.algorithm, recipe.optimizer
    accumulation = batch_an_update(recipe) // micro
    dtype = str(machine_device.float_dtype(device, recipe.cpu_dtype)).removeprefix("torch.")
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
        "chat_template_kwargs": chat_template.TEMPLATE_OPTIONS,
        "beta": algorithm.kl,
        "epsilon": algorithm.clip,
        "mask_truncated_completions": recipe.reward.truncated.mode == "mask",
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
        "gradient_checkpointing": optimizer.checkpoints_activations(device.type),
        "save_strategy": "no",  # the recorder asks for checkpoints, at rollout boundaries
        "logging_steps": 1,
        "report_to": "none",  # monitoring/trackers.py has them
        "disable_tqdm": True,
    }


def engine_options(engine: str, tokenizer: Any) -> dict[str, Any]:
    """What TRL has to be told of a rollout engine: that it is the vLLM inside Unsloth's model, and the stop tokens.

    vLLM reads those off the base model's own files, which know no end of turn.
    """
    if engine != "fast_inference":
        return {}
    stops = {"stop_token_ids": chat_template.stop_token_ids(tokenizer)}
    return {"use_vllm": True, "vllm_mode": "colocate", "generation_kwargs": stops}
