"""The numbers of one scored batch. Pure functions."""

from typing import Any

import numpy as np

from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards.scored_batch import ScoredBatch

OF_A_CRITIC = ("value_loss", "value_mean", "explained_variance", "advantage_std")  # that PPO's critic tells


def batch_metrics(batch: ScoredBatch) -> dict[str, float | None]:
    """The numbers that one batch of rollouts gives by itself; None where one has no meaning.

    The reward's are of what is trained on; where all of it is masked, of what would have been.
    """
    rewards_B = batch.rewards_B if batch.masked_B.all() else batch.rewards_B[~batch.masked_B]
    return {
        "reward_mean": float(rewards_B.mean()),
        "reward_std": float(rewards_B.std()),
        "score_mean": float(batch.raw_B.mean()),
        "score_std": float(batch.raw_B.std()),
        "completion_tokens_mean": float(batch.tokens_B.mean()),
        "truncated_fraction": float(batch.truncated_B.mean()),
        "reward_length_correlation": correlation(batch.raw_B, batch.tokens_B),
        "repetition_fraction": float(batch.repeated_B.mean()),
        "distinct_fraction": float(
            np.mean([len(set(group)) / len(group) for group in groups(batch, batch.completions)])
        ),
        "equal_groups_fraction": float(np.mean(equal_groups(batch))),
        "reward_cut_fraction": batch.cut / len(batch.raw_B),
        **{f"reward_{part}_mean": float(added_B.mean()) for part, added_B in batch.parts.items()},
        **(parts_metrics(batch) if len(batch.judged) > 1 else {}),
    }


def parts_metrics(batch: ScoredBatch) -> dict[str, float | None]:
    """Each source's part of the score by itself, where it applies: its mean, and what the guards watch."""
    found: dict[str, float | None] = {}
    for name, given_B in batch.judged.items():
        applies_B = ~np.isnan(given_B)
        if not applies_B.any():
            continue
        found[f"score_mean/{name}"] = float(given_B[applies_B].mean())
        found[f"reward_length_correlation/{name}"] = correlation(given_B[applies_B], batch.tokens_B[applies_B])
        equal = [len(set(given_G)) <= 1 for given_G in groups(batch, given_B) if not np.isnan(given_G).any()]
        found[f"equal_groups_fraction/{name}"] = float(np.mean(equal)) if equal else None
    return found


def equal_groups(batch: ScoredBatch) -> list[bool]:
    """Of each group, whether its completions teach nothing: they all earn the same, or all but one are masked."""
    rewards, masked = groups(batch, batch.rewards_B), groups(batch, batch.masked_B)
    return [len(set(rewards_G[~masked_G])) <= 1 for rewards_G, masked_G in zip(rewards, masked, strict=True)]


def why_no_signal(batch: ScoredBatch, reward: Reward) -> str | None:
    """Why a batch teaches nothing, and what to change; None where at least one group's rewards differ."""
    if not all(equal_groups(batch)):
        return None
    mode = reward.truncated.mode
    if batch.masked_B.any():
        return (
            "reward.truncated.mode=mask leaves out the answers that hit rollout.max_tokens, and too few are left to "
            "compare; use reward.truncated.mode=ordered, or raise rollout.max_tokens"
        )
    if batch.truncated_B.all() and mode in ("penalty", "floor"):
        return (
            f"every answer hit rollout.max_tokens and earns the same by reward.truncated.mode={mode}; use "
            "reward.truncated.mode=ordered, or raise rollout.max_tokens"
        )
    if all(len(set(texts)) == 1 for texts in groups(batch, batch.completions)):
        return "the answers to each prompt are the same, word for word; raise rollout.temperature"
    if any(np.ptp(raw_G) > 0 for raw_G in groups(batch, batch.raw_B)):
        return "their scores differ, but not what shaping makes of them; see reward.clip and reward.truncated"
    if reward.judges:
        return "the reward model scores them all the same; ask `python -m grlo_lite.doctor` what it can tell apart"
    return (
        "the answers to each prompt earn all the same, as where all are right or all are wrong; choose easier or "
        "harder prompts, or a larger rollout.group_size"
    )


def groups(batch: ScoredBatch, values_B: Any) -> list[Any]:
    """One value a completion, cut into the groups of one prompt each."""
    return [values_B[start : start + batch.group_size] for start in range(0, len(values_B), batch.group_size)]


def correlation(a_B: np.ndarray, b_B: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays of shape (B,), or None where one of them does not vary."""
    if np.ptp(a_B) == 0 or np.ptp(b_B) == 0:
        return None
    return float(np.corrcoef(a_B, b_B)[0, 1])


def samples(step: int, batch: ScoredBatch, count: int) -> list[dict[str, Any]]:
    """`count` rollouts of a batch, spread evenly over its groups, as rows of samples.jsonl."""
    picked = np.linspace(0, len(batch.completions) - 1, min(count, len(batch.completions))).round().astype(int)
    return [
        {
            "step": step,
            "prompt": batch.prompts[i][-1]["content"],
            "completion": batch.completions[i],
            "reward": float(batch.rewards_B[i]),
            "score": float(batch.raw_B[i]),
            "length": int(batch.tokens_B[i]),
            "truncated": bool(batch.truncated_B[i]),
        }
        for i in picked
    ]


def logged_mean(logs: list[dict[str, float]], key: str) -> float | None:
    values = [log[key] for log in logs if key in log]
    return float(np.mean(values)) if values else None


def without_overflow(logs: dict[str, float], optimizer: Any) -> dict[str, float]:
    """The logs of an update; where the loss scaler skipped it, in fp16, without the norm of gradients that overflowed
    and with `skipped_update`.
    """
    if not getattr(optimizer, "step_was_skipped", False):
        return logs
    return {key: value for key, value in logs.items() if key != "grad_norm"} | {"skipped_update": 1.0}


def with_entropy(logs: dict[str, float], generate: Any) -> dict[str, float]:
    """The logs of an update, with the entropy of what was sampled where the trainer logs none, as Unsloth's does not:
    the engine's `sampled_entropy`, nats a token, the mean of -log p of the tokens that it drew.
    """
    sampled = getattr(generate, "sampled_entropy", None)
    return logs if "entropy" in logs or sampled is None else logs | {"entropy": float(sampled)}
