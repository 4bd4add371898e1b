"""One batch of rollouts with all that was made of it."""

from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from grlo_lite.models.chat_template import Messages


@dataclass(frozen=True)
class ScoredBatch:
    """One batch of rollouts: what was asked and answered, what the judges said, and what was made of it. B
    completions.
    """

    prompts: list[Messages]
    completions: list[str]
    group_size: int  # completions a prompt; those of one prompt stand together
    tokens_B: np.ndarray  # completion lengths
    truncated_B: np.ndarray  # True where rollout.max_tokens was hit
    masked_B: np.ndarray  # True where a completion is left out of the loss and of its group's baseline
    repeated_B: np.ndarray  # share of repeated 4-grams
    judged: dict[str, np.ndarray]  # each judge's raw scores
    raw_B: np.ndarray  # the judges' scores, weighted and summed
    parts: dict[str, np.ndarray]  # what each kind of shaping added, in reward units
    rewards_B: np.ndarray  # what is trained on, where not masked
    cut: int  # conversations longer than reward.max_tokens
    began: float  # time.monotonic() when scoring began
    ended: float


def joined(batches: list[ScoredBatch]) -> ScoredBatch:
    """One batch made of each process's part of it, in order; the scoring ended with the last of them."""

    def whole(parts: list[Any]) -> Any:
        if isinstance(parts[0], list):
            return list(chain.from_iterable(parts))
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        if isinstance(parts[0], dict):
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return parts[0]

    columns = {field.name: whole([getattr(batch, field.name) for batch in batches]) for field in fields(ScoredBatch)}
    columns["cut"] = sum(batch.cut for batch in batches)
    return ScoredBatch(**columns)
