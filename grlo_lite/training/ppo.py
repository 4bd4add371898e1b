"""PPO composed into TRL's GRPO trainer: its loss takes one advantage a token, and the critic makes them.

Each rollout: the critic's values, generalized advantages from them, the critic's own updates, and the advantages,
whitened, in the place of the group's. What is clipped and minimized for the policy is TRL's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.models.critic import Critic
from grlo_lite.recipe.schema import Recipe
from grlo_lite.training import advantages as arithmetic
from grlo_lite.training import trl_inside
from grlo_lite.training.micro_batches import trimmed

ROWS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
EXPLAINED = 10  # rollouts that `explained_variance` is of
FP16_SCALE = 1024.0  # of the critic's loss, where its gradients would fall below what fp16 holds


class Kept:
    """What TRL calls for rewards, which keeps the newest ones for the critic."""

    def __init__(self, reward: Callable[..., list[float | None]]):
        self.reward, self.__name__ = reward, "reward"
        self.newest: list[float | None] = []

    def __call__(self, *words: Any, **options: Any) -> list[float | None]:
        self.newest = self.reward(*words, **options)
        return self.newest


def learn_with_a_critic(trainer: Any, recipe: Recipe, critic: Critic, rewards: Kept) -> None:
    """Makes a GRPO trainer of TRL a PPO trainer. `rewards` holds the rewards of the rollout that TRL has just made.

    Raises BadInput where the processes cannot share the critic's updates equally.
    """
    rows, updates = recipe.rollout.batch // processes.count(), recipe.critic_updates
    if rows % updates:
        raise BadInput(
            f"algorithm.critic.updates_per_rollout={updates} does not divide the {rows} completions that each of "
            f"{processes.count()} processes has; choose a divisor"
        )
    if recipe.rollout.group_size == 1:
        trl_inside.one_completion_a_prompt(trainer)

    def with_token_advantages(output: dict[str, Any]) -> dict[str, Any]:
        mask_BT = output["completion_mask"]
        rewards_B = torch.tensor([0.0 if r is None else r for r in rewards.newest], device=mask_BT.device)
        return output | {"advantages": token_advantages(trainer, recipe, critic, output, rewards_B)}

    trl_inside.change_each_rollout(trainer, with_token_advantages)


def token_advantages(
    trainer: Any, recipe: Recipe, critic: Critic, rollout: dict[str, Any], rewards_B: Tensor
) -> Tensor:
    """Whitened advantages of a rollout's tokens, shape (B, T); the critic has then learnt from the rollout.

    In the critic's warm-up they are 0, so that the policy stays. Tells `value_loss`, `value_mean`, `advantage_std`
    (before whitening) and `explained_variance`, of the last ten rollouts by what the critic said before it had learnt
    from each.
    """
    algorithm, summed = recipe.algorithm, _summed(trainer)
    rows, mask_BT = {key: rollout[key] for key in ROWS}, rollout["completion_mask"].float()
    rewards_BT = arithmetic.rewards_at_the_end(rewards_B, mask_BT) - _kl_penalty(trainer, algorithm.kl, rollout)
    if critic.rollouts == 0:
        reward_a_row = summed((rewards_BT * mask_BT).sum()) / summed(mask_BT.any(1).float().sum()).clamp(min=1)
        critic.head.bias.data.fill_(float(reward_a_row))
    values_BT = _values(trainer, critic, rows) * mask_BT
    advantages_BT = arithmetic.generalized_advantages(
        rewards_BT, values_BT, mask_BT, algorithm.gamma, algorithm.gae_lambda
    )
    targets = {"old": values_BT, "returns": (advantages_BT + values_BT) * mask_BT}
    critic.variances.append(arithmetic.left_and_total(values_BT, targets["returns"], mask_BT, summed))
    del critic.variances[:-EXPLAINED]
    explained = arithmetic.explained_variance(critic.variances)
    said = {
        "value_mean": float(arithmetic.moments(values_BT, mask_BT, summed)[0]),
        "advantage_std": float(arithmetic.moments(advantages_BT, mask_BT, summed)[1].sqrt()),
        "value_loss": _learn(trainer, recipe, critic, rows | targets),
        **({} if explained is None else {"explained_variance": explained}),
    }
    trl_inside.tell(trainer, said)
    warming = critic.rollouts < algorithm.critic.warmup_rollouts
    critic.rollouts += 1
    white_BT = arithmetic.whitened(advantages_BT, mask_BT, summed)
    return torch.zeros_like(white_BT) if warming else white_BT


def _summed(trainer: Any) -> arithmetic.Summed:
    return lambda value: trainer.accelerator.reduce(value, reduction="sum")


def _kl_penalty(trainer: Any, kl: float, rollout: dict[str, Any]) -> Tensor | float:
    """`kl` times log p − log p of the base of each token that was drawn, shape (B, T), reward units; 0 without it."""
    if not kl:
        return 0.0
    mask_BT = rollout["completion_mask"].float()
    with torch.no_grad():
        logp_BT = trl_inside.log_probabilities(trainer, rollout)
        with trainer.model.disable_adapter():
            base_BT = trl_inside.log_probabilities(trainer, rollout)
    kl_BT = (logp_BT - base_BT) * mask_BT
    trl_inside.tell(trainer, {"kl": float(arithmetic.moments(kl_BT, mask_BT, _summed(trainer))[0])})
    return kl * kl_BT


def _values(trainer: Any, critic: Critic, rows: dict[str, Tensor]) -> Tensor:
    """The critic's values of a rollout, shape (B, T), a micro-batch at a time; padding has 0."""
    found_BT = torch.zeros(rows["completion_mask"].shape, device=rows["completion_mask"].device)
    everything = torch.arange(len(found_BT), device=found_BT.device)
    with torch.no_grad(), critic.in_effect(), trainer.accelerator.autocast():
        for index, part in _micro_batches(rows, everything, trainer.args.per_device_train_batch_size):
            said = critic.values(part)
            found_BT[index, : said.shape[1]] = said
    return found_BT


def _micro_batches(rows: dict[str, Tensor], chosen: Tensor, size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The chosen rows in micro-batches of like length, longest first, each with its index and cut to its width."""
    order = rows["completion_mask"].sum(1)[chosen].argsort(descending=True, stable=True)
    return [(index, trimmed({key: value[index] for key, value in rows.items()})) for index in chosen[order].split(size)]


def _learn(trainer: Any, recipe: Recipe, critic: Critic, rows: dict[str, Tensor]) -> float:
    """The critic's updates of a rollout, each of every n-th row, a part of each group; returns their mean loss."""
    summed, count = _summed(trainer), recipe.critic_updates
    wanted = recipe.algorithm.critic
    spread = arithmetic.moments(rows["returns"], rows["completion_mask"].float(), summed)[1].sqrt()
    clip = None if wanted.clip is None else wanted.clip * float(spread)
    scale = FP16_SCALE if trainer.args.fp16 else 1.0
    losses = []
    for first in range(count):
        chosen = torch.arange(first, len(rows["returns"]), count, device=rows["returns"].device)
        tokens = summed(rows["completion_mask"][chosen].sum().float()).clamp(min=1)
        loss = torch.zeros((), device=tokens.device)
        with critic.in_effect():
            for _, part in _micro_batches(rows, chosen, trainer.args.per_device_train_batch_size):
                with trainer.accelerator.autocast():
                    new_BT = critic.values(part)
                losses_BT = arithmetic.value_losses(new_BT, part["old"], part["returns"], clip)
                of_part = (losses_BT * part["completion_mask"]).sum() / tokens
                (scale * of_part).backward()
                loss += of_part.detach()
        _update(critic, scale, recipe.optimizer.max_grad_norm, summed)
        losses.append(float(summed(loss)))
    return sum(losses) / count


def _update(critic: Critic, scale: float, max_grad_norm: float, summed: arithmetic.Summed) -> None:
    """One step of the critic's optimizer by the gradients of all processes, none where fp16 overflowed; no gradient is
    left for Trainer to clip the policy's with.
    """
    parameters = critic.parameters()
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = summed(parameter.grad) / scale
    if torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).isfinite():
        critic.optimizer.step()
    critic.optimizer.zero_grad(set_to_none=True)
