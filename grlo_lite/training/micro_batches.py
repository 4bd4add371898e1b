"""Micro-batches of completions of like length, and how large they are."""

from typing import Any

import torch

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.planning.planner import MICRO_BATCHES
from grlo_lite.recipe.schema import Recipe


def arranged(buffered: list[dict[str, Any]], updates: int, sort: bool) -> list[dict[str, Any]]:
    """A rollout's micro-batches with completions of like length, longest first, cut to their own width.

    TRL pads every completion of a step to the longest and shuffles them. Completions are sorted within an optimizer
    update, whose gradient does not depend on their order (but for the loss `bnpo`, which weights a micro-batch by its
    own tokens and is left as it is); the longest come first, so that a step that does not fit fails at once.
    """
    size = len(buffered) // updates
    windows = [buffered[start : start + size] for start in range(0, len(buffered), size)]
    return [trimmed(micro) for window in windows for micro in (by_length(window) if sort else window)]


def by_length(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in micro-batches of the same sizes, longest completions first."""
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
    """Completions a forward and backward pass of one process: what the recipe says; `auto` is all of them on a CPU and,
    on a GPU that no plan was made for, the largest that the planner tries. Raises BadInput where the recipe's number
    does not divide what a process has.
    """
    wanted, batch = recipe.optimizer.micro_batch, batch_an_update(recipe)
    if wanted == "auto":
        return batch if device.type == "cpu" else next(size for size in MICRO_BATCHES if batch % size == 0)
    if batch % wanted:
        raise BadInput(
            f"optimizer.micro_batch={wanted} does not divide the {batch} completions that each of {processes.count()} "
            "processes has in an update; choose a divisor"
        )
    return wanted
