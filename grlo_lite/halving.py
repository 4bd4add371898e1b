"""Out of memory: what was too large is halved, the step is made again, and what is optimized stays the same.

Each phase of a step shrinks by itself: the rollout by how many completions are generated at once, the reward model by
its tokens a batch, the update by its micro-batch, of which the effective batch then has more.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import TrainerCallback

from grlo_lite import processes
from grlo_lite.errors import DoesNotFit
from grlo_lite.rundir import RunDir, append_lines, read_lines

GUARD = "out_of_memory"
HALVED = {"rollout": "completions at once", "reward": "tokens a batch", "update": "micro-batch"}


class Halvings:
    """What had to be halved in a run so far, a line each in guards.jsonl, so that a resumed run begins with it."""

    def __init__(self, run: RunDir):
        self.run = run
        self.writes = processes.is_main()
        self.step = 0
        lines = read_lines(run.guards) if run.guards.is_file() else []
        self.made = [line for line in lines if line["guard"] == GUARD]

    def smallest(self, phase: str) -> int | None:
        """What a phase was last halved to; None where it never was."""
        return min((line["now"] for line in self.made if line["phase"] == phase), default=None)

    def note(self, phase: str, was: int, now: int) -> None:
        """Says and writes down that a phase goes on with less at once."""
        message = f"the {phase} was out of memory and goes on with {HALVED[phase]} {was:,} -> {now:,}"
        tqdm.write(f"step {self.step}: {message}")
        line = {"step": self.step, "guard": GUARD, "message": message, "phase": phase, "was": was, "now": now}
        self.made.append(line)
        if self.writes:
            append_lines(self.run.guards, [line])


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
                if not should_reduce_batch_size(error):
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


class Boundary(TrainerCallback):
    """The state at the newest rollout boundary, in main memory, so that a step that ran out of memory in the middle
    can be made again from its beginning.
    """

    def __init__(self, run: RunDir, updates_per_rollout: int):
        self.run = run
        self.updates = updates_per_rollout
        self.step = 0
        self.state: dict[str, Any] = {}

    def on_step_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **_):
        if state.global_step % self.updates:
            return
        assert optimizer is not None
        assert lr_scheduler is not None
        self.step = state.global_step
        self.lengths = self.run.journal_lengths()
        self.state = {
            "adapter": {name: p.detach().to("cpu", copy=True) for name, p in trainable(model).items()},
            "optimizer": _on_cpu(optimizer.state_dict()),
            "scheduler": copy.deepcopy(lr_scheduler.state_dict()),
            "random": random_state(),
        }

    def restore(self, trainer: Any) -> None:
        """Puts a trainer and the journals, whatever they were in the middle of, back to the boundary."""
        self.run.cut_journals(self.lengths)
        with torch.no_grad():
            for name, parameter in trainable(trainer.model).items():
                parameter.copy_(self.state["adapter"][name])
                parameter.grad = None
        trainer.optimizer.load_state_dict(self.state["optimizer"])
        trainer.lr_scheduler.load_state_dict(self.state["scheduler"])
        trainer.state.global_step = self.step
        restore_random_state(self.state["random"])


def train_halving(
    make: Callable[[int], Any],
    micro: int,
    batch: int,
    checkpoint: Path | None,
    boundary: Boundary,
    halvings: Halvings,
    adopt: Callable[[Path, int], None],
) -> None:
    """Trains to the end, by a trainer that `make` composes for a micro-batch.

    Where an update runs out of memory, the step is made again from its beginning with half the micro-batch: the
    state of the boundary is saved as a checkpoint, which a new trainer goes on from. Groups and the `batch` of an
    update stay as they are. Raises DoesNotFit at a micro-batch of 1, and with several processes, which cannot agree
    on halving it while they wait for each other's gradients.
    """
    while True:
        trainer = make(micro)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        if processes.count() > 1:
            raise DoesNotFit(f"the update does not fit at optimizer.micro_batch={micro}; set a smaller one")
        smaller = smaller_micro_batch(micro, batch)
        boundary.restore(trainer)
        halvings.note("update", micro, smaller)
        micro, checkpoint = smaller, _saved_checkpoint(trainer, boundary, adopt)
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trainer.accelerator.free_memory()
        del trainer
        clear_device_cache(garbage_collection=True)


def _saved_checkpoint(trainer: Any, boundary: Boundary, adopt: Callable[[Path, int], None]) -> Path | None:
    """The checkpoint of the boundary, written unless there is one; None before the first step."""
    step = boundary.step // boundary.updates
    folder = boundary.run.checkpoints / f"step-{step}"
    if step and not folder.exists():
        trainer._save_checkpoint(trainer.model, trial=None)
        adopt(Path(trainer.args.output_dir) / f"checkpoint-{boundary.step}", step)
    return folder if step else None


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with every tensor in main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item) for item in value)
    return value


def random_state() -> dict[str, Any]:
    """The state of every random number generator that a run draws from."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
