"""Every private name of TRL and of Transformers' Trainer that this project touches.

A test holds the table against what is installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_RATIO = 3.0  # of a token's probabilities, trainer's over sampler's, by which its loss is multiplied


# what of GRPO and of RLOO has the name, its name, and what it is relied on for
TOUCHED = (
    ("Trainer", "_prepare_inputs", "gives the next micro-batch, made by a rollout every steps_per_generation"),
    ("Trainer", "_buffered_inputs", "the micro-batches of the newest rollout"),
    ("Trainer", "_step", "counts micro-batches"),
    ("Trainer", "_save_checkpoint", "writes checkpoint-N into output_dir"),
    ("Trainer", "_last_loaded_step", "the step whose weights the sampler has"),
    ("Trainer", "_generate_and_score_completions", "makes a rollout: samples, scores, gives advantages"),
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


def sample_through(trainer: Any, sampler: Any) -> None:
    """Makes a trainer sample through what has `sync_weights` and `generate` as TRL's own vLLM has them, and GRPO's
    loss correct for the difference between sampler and trainer, token by token, by ratios of at most LARGEST_RATIO.

    Of whole completions, TRL's default, the ratio's logarithm is a sum of rounding errors: in 16 bits a long answer
    would be left out for nothing else.
    """
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, sampler, -1
    trainer.vllm_importance_sampling_correction = True
    trainer.vllm_importance_sampling_mode = "token_truncate"
    trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = None, LARGEST_RATIO


def see_rollouts(trainer: Any, seen: Callable[[dict[str, Any]], None]) -> None:
    """Shows each rollout to `seen` before it is cut into micro-batches; what that changes in it counts."""
    make = trainer._generate_and_score_completions

    def made(inputs: Any) -> dict[str, Any]:
        rollout = make(inputs)
        seen(rollout)
        return rollout

    trainer._generate_and_score_completions = made


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
