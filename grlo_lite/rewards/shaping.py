"""What the policy is trained on: rewards made of the reward models' raw scores, every part of them logged by itself."""

import numpy as np

from grlo_lite.recipe.schema import Reward


def shaped_rewards(
    raw_B: np.ndarray,
    truncated_B: np.ndarray,
    tokens_B: np.ndarray,
    repeated_B: np.ndarray,
    reward: Reward,
    lowest: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rewards, shape (B,), and what each kind of shaping that is on added to the raw scores to make them.

    `lowest` is the whole batch's lowest raw score, of which this may be one process's part. In order: what a
    truncated completion earns (`reward.truncated`), the length penalty for each 1,000 tokens beyond
    `length_free`, the repetition penalty times the share of repeated 4-grams, and the clip to ± `clip`.
    """
    parts = {}
    mode, value = reward.truncated.mode, reward.truncated.value
    instead_B = {"penalty": np.full_like(raw_B, lowest - value), "floor": np.full_like(raw_B, value)}
    parts["truncation"] = np.where(truncated_B, instead_B.get(mode, raw_B - value) - raw_B, 0.0)
    if reward.length_penalty:
        parts["length"] = -reward.length_penalty * np.clip(tokens_B - reward.length_free, 0, None) / 1000
    if reward.repetition_penalty:
        parts["repetition"] = -reward.repetition_penalty * repeated_B
    rewards_B = raw_B + sum(parts.values())
    if reward.clip is not None:
        parts["clip"] = np.clip(rewards_B, -reward.clip, reward.clip) - rewards_B
        rewards_B = rewards_B + parts["clip"]
    return rewards_B, parts


def repeated_4grams(ids: list[int]) -> float:
    """The share of a completion's token 4-grams that occurred in it before; 0 where it is too short to have any."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
