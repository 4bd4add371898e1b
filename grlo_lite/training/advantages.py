"""PPO's arithmetic. Pure functions of tensors of shape (B, T): B completions, T of their tokens, padded on the right.

`mask_BT` is 1 where a completion has a token. `summed` adds a tensor up over the processes of a run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Summed = Callable[[Tensor], Tensor]


def alone(value: Tensor) -> Tensor:
    """What a single process adds up to."""
    return value


def rewards_at_the_end(rewards_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Each completion's reward at its last token, truncated or finished, 0 elsewhere; in reward units, shape (B, T)."""
    last_BT = mask_BT * (mask_BT.cumsum(1) == mask_BT.sum(1, keepdim=True))
    return rewards_B[:, None] * last_BT


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimates, in reward units, shape (B, T), 0 behind a completion's end.

    Schulman et al. 2016 (arXiv 1506.02438), equations 11, 12 and 16: the sum of (gamma · lambda)^l · delta_{t+l}, where
    delta_t = r_t + gamma · V_{t+1} − V_t. Behind the last token V is 0, of a truncated completion too: its reward
    stands for all that would have come.
    """
    values_BT, advantages_BT = values_BT * mask_BT, torch.zeros_like(values_BT)
    next_value_B = advantage_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = (delta_B + gamma * gae_lambda * advantage_B) * mask_BT[:, t]
        advantages_BT[:, t], next_value_B = advantage_B, values_BT[:, t]
    return advantages_BT


def moments(values_BT: Tensor, mask_BT: Tensor, summed: Summed = alone) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over all tokens of all processes."""
    count = summed(mask_BT.sum().to(values_BT.dtype))
    mean = summed((values_BT * mask_BT).sum()) / count.clamp(min=1)
    squares = summed((((values_BT - mean) ** 2) * mask_BT).sum())
    return mean, squares / (count - 1).clamp(min=1)


def whitened(values_BT: Tensor, mask_BT: Tensor, summed: Summed = alone) -> Tensor:
    """The values less their mean over their standard deviation, over all tokens of the batch; 0 at padding. They have
    no unit. Engstrom et al. 2020 (arXiv 2005.12729), section 3; as in verl and OpenRLHF.
    """
    mean, variance = moments(values_BT, mask_BT, summed)
    return (values_BT - mean) * torch.rsqrt(variance + 1e-8) * mask_BT


def value_losses(new_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of each value, in squared reward units, shape (B, T), padding included.

    With `clip`, in reward units, no less than that of a value at most so far from the rollout's own. Schulman et al.
    2017 (arXiv 1707.06347), equation 9, whose L^VF this is with the clipping of its authors' code (openai/baselines).
    """
    losses_BT = (new_BT - returns_BT) ** 2
    if clip is not None:
        near_BT = old_BT + (new_BT - old_BT).clamp(-clip, clip)
        losses_BT = torch.maximum(losses_BT, (near_BT - returns_BT) ** 2)
    return losses_BT / 2


def left_and_total(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, summed: Summed = alone
) -> tuple[float, float]:
    """The variance of returns − values and that of the returns, over all tokens, in squared reward units."""
    _, left = moments(returns_BT - values_BT, mask_BT, summed)
    _, total = moments(returns_BT, mask_BT, summed)
    return float(left), float(total)


def explained_variance(rollouts: list[tuple[float, float]]) -> float | None:
    """1 less what is left of the variance of several rollouts' returns over their total: 1 where the critic knows all,
    0 where it knows no more than each rollout's mean; None where the returns do not vary.

    Of several together, because one whose answers all earn about the same has next to nothing to explain.
    """
    total = sum(total for _, total in rollouts)
    return 1 - sum(left for left, _ in rollouts) / total if total > 0 else None
