"""A full disk, told before and after."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError

from grlo_lite.errors import BadInput, DiskFull
from grlo_lite.rundir.layout import RunDir


def checkpoint_bytes(model: Any) -> int:
    """What a checkpoint takes at most: the adapter and AdamW's two moments of it, and 1 MiB for all else."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) + 2**20


def require_space(run: RunDir, needed: int) -> None:
    """Raises BadInput where the run's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise BadInput(
            f"the run will write about {in_mib(needed)} under {run.path} and {in_mib(free)} are free; make room, "
            "choose another disk by --run-dir, or keep fewer checkpoints (budget.checkpoints_kept=1)"
        )


@contextmanager
def full_disk_told(run: RunDir, next_checkpoint: int) -> Iterator[None]:
    """Inside, an error that comes of a full disk leaves as DiskFull; `next_checkpoint` bytes are what the run would
    write next.

    Some libraries say only that writing failed, so an error counts where the disk has less left than that.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(run.path).free
        named = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not named and free >= next_checkpoint:
            raise
        shutil.rmtree(run.partial, ignore_errors=True)
        raise DiskFull(_full_disk_message(run, f"{in_mib(free)} are free")) from error


def require_space_for_checkpoint(run: RunDir, step: int, needed: int) -> None:
    """Raises DiskFull before anything is written where a checkpoint of `needed` bytes has no room."""
    free = shutil.disk_usage(run.path).free
    if free < needed:
        what = f"the checkpoint of step {step} takes {in_mib(needed)} and {in_mib(free)} are free"
        raise DiskFull(_full_disk_message(run, what))


def _full_disk_message(run: RunDir, what: str) -> str:
    whole = run.checkpoint_folders()
    kept = f"{whole[-1].name} is kept" if whole else "no checkpoint was made yet"
    return (
        f"the disk under {run.path} is full: {what}; {kept}; make room and go on with: "
        f"python -m grlo_lite.train --run-dir {run.path} --resume"
    )


def in_mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
