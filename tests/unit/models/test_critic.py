"""PPO's critic: two adapters on one base that do not touch each other."""

import pytest
import torch

from grlo_lite.models import critic as critics
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.recipe import loading as recipes

CPU = torch.device("cpu")


def recipe(*words):
    return recipes.load("microcosm", ["algorithm.name=ppo", *words])


def made(*words):
    values = recipe(*words)
    torch.manual_seed(5)
    policy = policies.load(values.model, values.lora, Place(CPU), 304, 0)
    with torch.no_grad():  # as after some training
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return policy, critics.Critic(policy.model, values)


def rows(prompts, completions):
    """Left-padded prompts and right-padded completions, with another token in each place."""
    width, longest = max(map(len, prompts)), max(map(len, completions))
    left = [[0] * (width - len(p)) for p in prompts]
    right = [[0] * (longest - len(c)) for c in completions]
    return {
        "prompt_ids": torch.tensor([pad + p for pad, p in zip(left, prompts, strict=True)]),
        "prompt_mask": torch.tensor([pad + [1] * len(p) for pad, p in zip(left, prompts, strict=True)]),
        "completion_ids": torch.tensor([c + pad for pad, c in zip(right, completions, strict=True)]),
        "completion_mask": torch.tensor([[1] * len(c) + pad for pad, c in zip(right, completions, strict=True)]),
    }


BATCH = rows([[11, 12, 13], [21]], [[31, 32], [41, 42, 43, 44]])


def logits(policy):
    ids = torch.cat([BATCH["prompt_ids"], BATCH["completion_ids"]], 1)
    mask = torch.cat([BATCH["prompt_mask"], BATCH["completion_mask"]], 1)
    return policy.model(input_ids=ids, attention_mask=mask).logits


def base_bytes(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}


@pytest.mark.parametrize("kind", ["adapter", "head"])
def test_the_critic_learns_and_the_policy_and_the_base_stay_to_the_bit(kind):
    values = recipe(f"algorithm.critic.kind={kind}")
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    policy = policies.load(values.model, values.lora, Place(CPU), 304, 0)
    alone, random = logits(policy), torch.random.get_rng_state()
    critic = critics.Critic(policy.model, values)
    assert torch.equal(torch.random.get_rng_state(), random)  # a run draws what it would have drawn
    torch.random.set_rng_state(state)
    base, mine = base_bytes(policy.model), [p.detach().clone() for p in critic.parameters()]
    assert torch.equal(logits(policy), alone)
    for _ in range(2):  # the head is zero at first, so that the adapter has no gradient yet
        with critic.in_effect():
            (critic.values(BATCH) - 3).square().mean().backward()
        critic.optimizer.step()
        critic.optimizer.zero_grad()
    assert torch.equal(logits(policy), alone)
    assert all(torch.equal(p, base[n]) for n, p in policy.model.named_parameters() if n in base)
    moved = [not torch.equal(now, before) for now, before in zip(critic.parameters(), mine, strict=True)]
    assert sum(moved) >= len(moved) // 2 if kind == "adapter" else all(moved)
    assert policy.model.active_adapters == ["default"]


def test_all_that_is_learnt_is_in_fp32_and_each_has_its_own_gradients():
    policy, critic = made()
    lora = {n: p for n, p in policy.model.named_parameters() if "lora_" in n}
    theirs = {n: p for n, p in lora.items() if ".critic." in n}
    policys = {n: p for n, p in lora.items() if ".default." in n}
    assert len(theirs) == len(policys) == len(lora) / 2 == 56
    assert {p.dtype for p in [*lora.values(), *critic.head.parameters()]} == {torch.float32}
    torch.nn.init.normal_(critic.head.weight)
    with critic.in_effect():
        critic.values(BATCH).sum().backward()
    assert all(p.grad is None for p in policys.values())
    assert all(p.grad is not None and p.requires_grad is False for p in theirs.values())
    assert sum(float(p.grad.abs().sum()) > 0 for p in theirs.values()) >= 28  # B is zero at first, so A has none yet
    critic.optimizer.zero_grad()
    logits(policy).sum().backward()
    assert all(p.grad is None for p in [*theirs.values(), *critic.head.parameters()])
    assert all(p.grad is not None for p in policys.values())


@pytest.mark.parametrize("kind", ["adapter", "head"])
def test_a_value_is_of_the_state_before_its_token(kind):
    """Not one token off: a token changes the values behind it, and none up to its own."""
    _, critic = made(f"algorithm.critic.kind={kind}")
    torch.nn.init.normal_(critic.head.weight)
    for changed in range(4):
        other = {key: value.clone() for key, value in BATCH.items()}
        other["completion_ids"][1, changed] = 99
        with torch.no_grad(), critic.in_effect():
            before, after = critic.values(BATCH)[1], critic.values(other)[1]
        differ = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True)]
        assert differ == [t > changed for t in range(4)]


def test_padding_on_both_sides_changes_no_value():
    _, critic = made()
    torch.nn.init.normal_(critic.head.weight)
    with torch.no_grad(), critic.in_effect():
        together = critic.values(BATCH)
        alone = [critic.values(rows([[11, 12, 13]], [[31, 32]])), critic.values(rows([[21]], [[41, 42, 43, 44]]))]
    torch.testing.assert_close(together[0, :2], alone[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], alone[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_what_is_saved_is_what_goes_on(name, tmp_path):
    _, critic = made(f"optimizer.name={name}")

    def learn(one):
        with one.in_effect():
            (one.values(BATCH) - 3).square().mean().backward()
        one.optimizer.step()
        one.optimizer.zero_grad()
        one.rollouts += 1

    learn(critic)
    critic.save(tmp_path)
    learn(critic)
    expected = critic.state()
    _, other = made(f"optimizer.name={name}")
    other.load(tmp_path)
    assert other.rollouts == 1
    learn(other)
    assert all(torch.equal(other.state()["weights"][name], saved) for name, saved in expected["weights"].items())
    assert critic.checkpoint_bytes >= (tmp_path / critics.WEIGHTS).stat().st_size


def test_its_rank_and_its_rate_follow_the_policys():
    _, critic = made("algorithm.critic.rank=4")
    shapes = {tuple(p.shape) for n, p in critic.adapter_weights().items() if "lora_A" in n}
    assert {rows for rows, _ in shapes} == {4}
    config = critic.model.peft_config["critic"]
    assert config.lora_alpha / config.r == 2 == 32 / 16
    assert critic.optimizer.param_groups[0]["lr"] == pytest.approx(9e-4)
    _, critic = made("algorithm.critic.learning_rate=1e-3")
    assert critic.optimizer.param_groups[0]["lr"] == 1e-3
