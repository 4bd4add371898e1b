"""PPO's arithmetic against arrays computed by hand, which verl (b178a3c) and OpenRLHF (3c3be62) give as well."""

from types import SimpleNamespace

import pytest
import torch
from torch import tensor
from trl import GRPOTrainer

from grlo_lite.training import advantages

MASK = tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
VALUES = tensor([[0.5, 1, 0, 2], [-1, 0.5, 9, 9]])  # the nines are padding
REWARDS = tensor([3.0, -2])


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-6)


def estimated(gae_lambda, gamma=1.0):
    rewards_BT = advantages.rewards_at_the_end(REWARDS, MASK)
    return advantages.generalized_advantages(rewards_BT, VALUES, MASK, gamma, gae_lambda)


def test_the_reward_is_at_the_last_token_and_nowhere_in_a_masked_completion():
    mask = tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    close(advantages.rewards_at_the_end(tensor([3.0, -2, 7]), mask), [[0.0, 0, 3], [-2, 0, 0], [0, 0, 0]])


def test_generalized_advantages_and_returns():
    found = estimated(0.5)
    close(found, [[0.625, 0.25, 2.5, 1], [0.25, -2.5, 0, 0]])
    close((found + VALUES) * MASK, [[1.125, 1.25, 2.5, 3], [-0.75, -2, 0, 0]])
    close(estimated(0.95), [[2.212375, 1.8025, 2.95, 1], [-0.875, -2.5, 0, 0]])
    close(estimated(1.0), [[2.5, 2, 3, 1], [-1, -2.5, 0, 0]])  # the reward less the value
    close(estimated(0.0), [[0.5, -1, 2, 1], [1.5, -2.5, 0, 0]])  # one step ahead
    close(estimated(1.0, gamma=0.5), [[-0.125, -0.25, 1.5, 1], [0, -2.5, 0, 0]])


def test_whitening_is_over_the_tokens_of_the_whole_batch():
    white = advantages.whitened(estimated(0.5), MASK)
    close(white, [[0.16629, -0.063958, 1.317528, 0.396537], [-0.063958, -1.75244, 0, 0]])
    assert advantages.whitened(torch.ones(2, 4), MASK).tolist() == [[0] * 4, [0] * 4]  # nothing to tell apart


def test_two_processes_whiten_as_one():
    """Each with a row; what they add up is given in the order in which it is asked for."""
    whole, mean_asked = advantages.whitened(estimated(0.5), MASK), []
    rows = [(estimated(0.5)[:1], MASK[:1]), (estimated(0.5)[1:], MASK[1:])]

    def summed_with(other_values, other_mask):
        def summed(value):
            mean_asked.append(value)
            kind = (len(mean_asked) - 1) % 3
            if kind == 0:
                return value + other_mask.sum()
            if kind == 1:
                return value + (other_values * other_mask).sum()
            mean = (estimated(0.5) * MASK).sum() / MASK.sum()
            return value + ((other_values - mean) ** 2 * other_mask).sum()

        return summed

    for mine, other in ((0, 1), (1, 0)):
        close(advantages.whitened(*rows[mine], summed_with(*rows[other])), whole[mine : mine + 1].tolist())


@pytest.mark.parametrize(("clip", "expected"), [(0.2, 0.2759375), (None, 0.2109375)])
def test_the_value_loss(clip, expected):
    old, new = tensor([[0.0, 1], [2, 7]]), tensor([[0.5, 1.125], [1.5, -7]])
    returns, mask = tensor([[1.0, 1], [2.5, 0]]), tensor([[1.0, 1], [1, 0]])
    losses = advantages.value_losses(new, old, returns, clip)
    close((losses * mask).sum() / mask.sum(), expected)


@pytest.mark.parametrize(("loss", "expected"), [("dapo", -0.28), ("dr_grpo", -0.175)])
def test_the_policy_loss_that_trl_takes_of_token_advantages(loss, expected):
    """Equation 7 of Schulman et al. 2017 with ratios 1.5, 0.5 and 1, by the trainer's own code."""
    mask = tensor([[1, 1, 1], [1, 1, 0]])
    ratios = tensor([[1.5, 0.5, 1], [1.5, 0.5, 1]]).log()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (ratios, torch.zeros(2, 3), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=0.0, loss_type=loss, epsilon_low=0.2, epsilon_high=0.2,
        use_vllm=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=4, _entropy_bonus_enabled=False, _metrics={"train": _Lists()},
        args=SimpleNamespace(delta=None, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
    )  # fmt: skip
    ids = torch.ones(2, 3, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask,
        "advantages": tensor([[1.0, 1, 2], [-1, -1, 0]]), "old_per_token_logps": torch.zeros(2, 3),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    close(GRPOTrainer._compute_loss(trainer, trainer.model, inputs), expected)
    # of five tokens, the first of the first row was clipped above, the second of the second row below
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [pytest.approx(2 / 5)]


class _Lists(dict):
    def __missing__(self, key):
        return self.setdefault(key, [])


def test_the_explained_variance():
    returns, mask = tensor([[1.0, 2, 3, 9]]), tensor([[1.0, 1, 1, 0]])

    def explained(*values):
        return advantages.explained_variance([advantages.left_and_total(tensor([v]), returns, mask) for v in values])

    assert explained([2.0, 3, 4, 0]) == 1  # but for a constant
    assert explained([5.0, 5, 5, 0]) == 0
    assert explained([1.0, 1, 3, 0]) == pytest.approx(1 - 1 / 3)
    assert explained([3.0, 2, 1, 0]) == pytest.approx(-3)
    assert explained([2.0, 3, 4, 0], [1.0, 1, 3, 0]) == pytest.approx(1 - 1 / 6)
    assert advantages.left_and_total(tensor([[1.0, 1, 3, 0]]), returns, mask) == pytest.approx((1 / 3, 1))
    assert advantages.explained_variance([(0.5, 0.0)]) is None
    assert advantages.explained_variance([(0.5, 0.0), (1.0, 2.0)]) == 0.25
