"""Every private name of TRL and of Transformers' Trainer that this project touches.

A test holds the table against what is installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LARGEST_RATIO = 3.0  # of a token's probabilities, trainer's over sampler's, by which its loss is multiplied


# what of GRPO and of RLOO has the name, its name, and what it is relied on for
TOUCHED = (
    ("Trainer", "_prepare_inputs", "gives the next micro-batch, made by a rollout every steps_per_generation"),
    ("Trainer", "_buffered_inputs", "the micro-batches of the newest rollout"),
    ("Trainer", "_step", "counts micro-batches"),
    ("Trainer", "_save_checkpoint", "writes checkpoint-N into output_dir"),
    (
        "Trainer",
        "_generate_and_score_completions",
        "makes a rollout: ids, masks, advantages (B,) or (B, T)",
    ),
    (
        "Trainer",
        "_get_per_token_logps_and_entropies",
        "log-probabilities, a micro-batch at a time",
    ),
    ("Trainer", "_metrics", "what goes into the next update's logs"),
    ("Trainer", "_last_loaded_step", "the step whose weights the sampler has"),
    ("Config", "_n_gpu", "the GPUs of one process, by which Trainer multiplies the batch"),
    ("Config", "_setup_devices", "the device, worked out once"),
)


def arrange_micro_batches(trainer: Any, arranged: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Makes a trainer take the micro-batches of each rollout as `arranged` gives them back."""
    prepare = trainer._prepare_inputs
    seen: list[Any] = [None]

    def prepared(batch: Any) -> dict[str, Any]:
        inputs = prepare(batch)
        if not trainer.model.training:
            return inputs
        if trainer._buffered_inputs is not seen[0]:
            trainer._buffered_inputs = seen[0] = arranged(trainer._buffered_inputs)
        return seen[0][trainer._step % trainer.args.steps_per_generation]

    trainer._prepare_inputs = prepared


def change_each_rollout(trainer: Any, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Makes a trainer train on each rollout as `changed` gives it back."""
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: changed(score(inputs))


def one_completion_a_prompt(trainer: Any) -> None:
    """Makes a trainer ask each prompt once. TRL's configuration insists on two, for its groups' baseline; its sampler
    and its scoring read the number off the trainer.
    """
    trainer.num_generations = 1


def log_probabilities(trainer: Any, rollout: dict[str, Any]) -> Any:
    """Log-probabilities of a rollout's tokens by the model as it is now, shape (B, T)."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    size, tokens = trainer.args.per_device_train_batch_size, rollout["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, tokens, batch_size=size)[0]


def tell(trainer: Any, metrics: dict[str, float]) -> None:
    """Puts metrics into the logs of the next update."""
    for name, value in metrics.items():
        trainer._metrics["train"][name].append(value)


def sample_through(trainer: Any, sampler: Any) -> None:
    """Makes a trainer sample through what has `sync_weights` and `generate` as TRL's own vLLM has them, and GRPO's
    loss correct for the difference between sampler and trainer, token by token, by ratios of at most LARGEST_RATIO.

    Of whole completions, TRL's default, the ratio's logarithm is a sum of rounding errors: in 16 bits a long answer
    would be left out for nothing else.
    """
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, sampler, -1
    trainer.vllm_importance_sampling_correction = True
    for read in (trainer, trainer.args):  # by TRL's loss, and by Unsloth's
        read.vllm_importance_sampling_mode = "token_truncate"
        read.vllm_importance_sampling_clip_min, read.vllm_importance_sampling_clip_max = None, LARGEST_RATIO


def set_device(config: Any, device: Any) -> None:
    """Sets the device of a configuration: one of several CPU processes is told "cpu:0", onto which torch.load restores
    nothing.
    """
    vars(config)["_setup_devices"] = device


def use_one_gpu(config: Any) -> None:
    """Keeps one process to one GPU: Trainer would double the batch for a second one that is visible."""
    vars(config)["_n_gpu"] = 1


def written_checkpoint(trainer: Any, update: int) -> Path:
    """The folder of a checkpoint that the trainer writes now, after `update` optimizer updates."""
    trainer._save_checkpoint(trainer.model, trial=None)
    return Path(trainer.args.output_dir) / f"checkpoint-{update}"
