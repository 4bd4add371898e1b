"""What the policy is trained on: rewards made of the reward models' raw scores, every part of them logged by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

from grlo_lite.recipe.schema import Reward


def shaped_rewards(
    raw_B: np.ndarray,
    truncated_B: np.ndarray,
    tokens_B: np.ndarray,
    repeated_B: np.ndarray,
    reward: Reward,
    gathered: Callable[[Any], list[Any]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rewards, shape (B,), and what each kind of shaping that is on added to the raw scores to make them.

    These are one process's completions; `gathered` gives every process's value of what it is handed. The length
    penalty is for each 1,000 tokens beyond `length_free`, the repetition penalty times the share of repeated 4-grams.
    Truncated completions are put in their place behind these (`ordered_shift`), or instead of their raw score
    (`penalty`, `floor`, `score`); the clip to ± `clip` comes last.
    """
    parts = {"truncation": _truncation_B(raw_B, truncated_B, reward, gathered)}
    if reward.length_penalty:
        parts["length"] = -reward.length_penalty * np.clip(tokens_B - reward.length_free, 0, None) / 1000
    if reward.repetition_penalty:
        parts["repetition"] = -reward.repetition_penalty * repeated_B
    rewards_B = raw_B + sum(parts.values())
    if reward.truncated.mode == "ordered":
        parts["truncation"] = truncated_B * ordered_shift(rewards_B, truncated_B, reward.truncated.value, gathered)
        rewards_B = rewards_B + parts["truncation"]
    if reward.clip is not None:
        parts["clip"] = np.clip(rewards_B, -reward.clip, reward.clip) - rewards_B
        rewards_B = rewards_B + parts["clip"]
    return rewards_B, parts


def _truncation_B(
    raw_B: np.ndarray, truncated_B: np.ndarray, reward: Reward, gathered: Callable[[Any], list[Any]]
) -> np.ndarray:
    """What a truncated completion's raw score is changed by, shape (B,), in the modes that look at it alone."""
    mode, value = reward.truncated.mode, reward.truncated.value
    if mode == "penalty":
        return np.where(truncated_B, min(gathered(float(raw_B.min()))) - value - raw_B, 0.0)
    if mode == "floor":
        return np.where(truncated_B, value - raw_B, 0.0)
    return truncated_B * (-value if mode == "score" else 0.0)


def ordered_shift(
    rewards_B: np.ndarray, truncated_B: np.ndarray, value: float, gathered: Callable[[Any], list[Any]]
) -> float:
    """What every truncated completion of the whole batch is moved by, so that finishing pays and their order stays.

    Down, until the best of them lies `value` below the lowest finished one; by `value` where none finished. Never up:
    a block that the judge put lower than that stays there, for lifting it would pay for not finishing.
    """
    best = max(gathered(float(rewards_B[truncated_B].max(initial=-np.inf))))
    lowest = min(gathered(float(rewards_B[~truncated_B].min(initial=np.inf))))
    if np.isinf(best):
        return 0.0
    return -value if np.isinf(lowest) else min(0.0, lowest - value - best)


def repeated_4grams(ids: list[int]) -> float:
    """The share of a completion's token 4-grams that occurred in it before; 0 where it is too short to have any."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
