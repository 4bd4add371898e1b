"""Out of memory: what was too large is halved, the step is made again, and what is optimized stays the same.

Each phase of a step shrinks by itself: the rollout by its dense copy and by how many completions are decoded at once
(`generation/engines.py`), the reward model by its tokens a batch, the update by its micro-batch, of which the effective
batch then has more.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from grlo_lite.errors import DoesNotFit, EngineFailed
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


def score_in_parts(judges: list[Any], halvings: Halvings) -> None:
    """Makes the reward models tell `halvings` when one of them halves its tokens a batch, and begin with the smallest
    that any of them came to.
    """
    for judge in judges:
        judge.on_halved = halvings.note
        judge.tokens_per_batch = min(judge.tokens_per_batch, halvings.smallest("reward") or judge.tokens_per_batch)


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
    on halving it while they wait for each other's gradients. Where the rollout engine dies, the boundary is saved.
    """
    while True:
        trainer = make(micro)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return
        except EngineFailed as error:
            boundary.restore(trainer)
            kept = _saved_checkpoint(trainer, boundary, recorder)
            mend = f"{kept.name} is kept; go on with --resume" if kept else "no step was made"
            raise EngineFailed(f"{error}; {mend}") from error
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
