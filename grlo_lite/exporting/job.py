"""What an export is asked for, and the folder that it is written into: whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grlo_lite.errors import BadInput
from grlo_lite.exporting.merged import Into
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.rundir.disk_space import in_mib
from grlo_lite.wording import cut

DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
Content = Literal["adapter", "merged", "gguf"]


@dataclass(frozen=True)
class Job:
    """One export: of what, whereto, and how."""

    subject: Subject
    folder: Path
    dtype: str = "fp16"
    into: Into = "dequantized"
    quantization: str = "f16"  # of a GGUF
    base_id: str | None = None  # the base's id on the Hub, where it cannot be told
    repo: str | None = None
    content: Content = "adapter"  # of an upload
    private: bool = False
    without_evaluation: bool = False
    check: bool = True
    suite: str | None = None
    limit: int = 200
    data_dir: Path | None = None


@contextmanager
def growing(folder: Path, needed: int) -> Iterator[Path]:
    """Inside, a neighbour to write into, which becomes `folder` at the end and is removed where an error ends it.

    Raises BadInput where the folder is there already, cannot be made, or its disk has less than `needed` bytes free.
    """
    if os.path.lexists(folder):
        raise BadInput(f"{cut(str(folder))} is there already; remove it, or name another folder by --to")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadInput(
            f"the folder {cut(str(folder))} cannot be made: {error.strerror}; name another by --to"
        ) from None
    try:
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise BadInput(
                f"the export takes about {in_mib(needed)} under {folder.parent} and {in_mib(free)} are free; make "
                "room, or name a folder on another disk by --to"
            )
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def model_name(subject: Subject) -> str:
    """What the run is called: its folder's name."""
    return subject.run.path.resolve().name


def torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, DTYPES[name])
