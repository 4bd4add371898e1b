"""One batch of rollouts with all that was made of it."""

from dataclasses import dataclass
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
    if len(batches) == 1:
        return batches[0]

    def of(key: str) -> list[Any]:
        return [getattr(batch, key) for batch in batches]

    def arrays(key: str) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in of(key)]) for name in of(key)[0]}

    return ScoredBatch(
        prompts=list(chain.from_iterable(of("prompts"))),
        completions=list(chain.from_iterable(of("completions"))),
        group_size=batches[0].group_size,
        tokens_B=np.concatenate(of("tokens_B")),
        truncated_B=np.concatenate(of("truncated_B")),
        masked_B=np.concatenate(of("masked_B")),
        repeated_B=np.concatenate(of("repeated_B")),
        judged=arrays("judged"),
        raw_B=np.concatenate(of("raw_B")),
        parts=arrays("parts"),
        rewards_B=np.concatenate(of("rewards_B")),
        cut=sum(of("cut")),
        began=batches[0].began,
        ended=batches[0].ended,
    )
