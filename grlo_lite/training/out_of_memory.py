"""Out of memory: what was too large is halved, the step is made again, and what is optimized stays the same.

Each phase of a step shrinks by itself: the rollout by how many completions are generated at once, the reward model by
its tokens a batch, the update by its micro-batch, of which the effective batch then has more.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch.nn.utils.rnn import pad_sequence

from grlo_lite.errors import DoesNotFit
from grlo_lite.machine import processes
from grlo_lite.machine.device import is_out_of_memory
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.recipe.schema import Recipe
from grlo_lite.training import trl_inside
from grlo_lite.training.boundary import Boundary
from grlo_lite.training.micro_batches import batch_an_update


def smaller_micro_batch(micro: int, batch: int) -> int:
    """The largest divisor of `batch` that is at most half of `micro`. Raises DoesNotFit at 1."""
    if micro == 1:
        raise DoesNotFit("the update of a single completion does not fit into this memory")
    return max(size for size in range(1, micro // 2 + 1) if batch % size == 0)


def generate_in_parts(model: Any, pad_id: int, halvings: Halvings) -> None:
    """Makes `model.generate` answer a batch that does not fit in parts, one after the other, from then on.

    Its answers are padded on the right to the longest one, as those of one batch are. A part draws other random
    numbers than the whole batch would. Raises DoesNotFit where not even one row fits.
    """
    whole: Callable[..., torch.Tensor] = model.generate

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        rows = len(input_ids)
        at_once = min(halvings.smallest("rollout") or rows, rows)
        while True:
            try:
                parts = [
                    whole(input_ids=input_ids[start : start + at_once], **_rows(options, rows, start, at_once))
                    for start in range(0, rows, at_once)
                ]
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if at_once == 1:
                raise DoesNotFit("the rollout of a single completion does not fit into this memory")
            clear_device_cache(garbage_collection=True)
            halvings.note("rollout", at_once, at_once // 2)
            at_once //= 2
        if len(parts) == 1:
            return parts[0]
        return pad_sequence([row for part in parts for row in part], batch_first=True, padding_value=pad_id)

    model.generate = generate


def score_in_parts(judges: list[Any], halvings: Halvings) -> None:
    """Makes the reward models tell `halvings` when one of them halves its tokens a batch, and begin with the smallest
    that any of them came to.
    """
    for judge in judges:
        judge.on_halved = halvings.note
        judge.tokens_per_batch = min(judge.tokens_per_batch, halvings.smallest("reward") or judge.tokens_per_batch)


def _rows(options: dict[str, Any], rows: int, start: int, at_once: int) -> dict[str, Any]:
    """The options of `generate` for a part of the rows: tensors with a value a row are cut, all else stays."""
    return {
        key: value[start : start + at_once] if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) else value
        for key, value in options.items()
    }


def train_halving(
    make: Callable[[int], Any],
    recipe: Recipe,
    micro: int,
    checkpoint: Path | None,
    boundary: Boundary,
    recorder: Recorder,
) -> None:
    """Trains to the end, by a trainer that `make` composes for a micro-batch.

    Where an update runs out of memory, the step is made again from its beginning with half the micro-batch: the
    state of the boundary is saved as a checkpoint, which a new trainer goes on from. Groups and the completions of an
    update stay as they are. Raises DoesNotFit at a micro-batch of 1, and with several processes, which cannot agree
    on halving it while they wait for each other's gradients.
    """
    while True:
        trainer = make(micro)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if processes.count() > 1:
            raise DoesNotFit(f"the update does not fit at optimizer.micro_batch={micro}; set a smaller one")
        smaller = smaller_micro_batch(micro, batch_an_update(recipe))
        boundary.restore(trainer)
        recorder.halvings.note("update", micro, smaller)
        micro, checkpoint = smaller, _saved_checkpoint(trainer, boundary, recorder)
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trainer.accelerator.free_memory()
        del trainer
        clear_device_cache(garbage_collection=True)


def _saved_checkpoint(trainer: Any, boundary: Boundary, recorder: Recorder) -> Path | None:
    """The checkpoint of the boundary, written unless there is one; None before the first step."""
    step = boundary.step // boundary.updates
    folder = boundary.run.checkpoints / f"step-{step}"
    if step and not folder.exists():
        recorder.adopt(trl_inside.written_checkpoint(trainer, boundary.step), step)
    return folder if step else None
