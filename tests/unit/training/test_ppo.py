"""PPO composed into TRL's GRPO trainer."""

import pytest
import torch

from grlo_lite.machine import device as device_module
from grlo_lite.models import chat_template
from grlo_lite.models import loading as models
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.models.critic import critic_of
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.training import advantages, ppo
from grlo_lite.training.trainer import Materials, composed_trainer

CPU = torch.device("cpu")
SMALL = ("rollout.batch=8", "rollout.max_tokens=12", "rollout.group_size=4", "budget.steps=2")


class Run:
    """A trainer of a small recipe with what it is made of; `batches` are the scored ones."""

    def __init__(self, folder, *words):
        common = ["algorithm.updates_per_rollout=1", "evaluation.heldout_prompts=0", "prompts.decontaminate=false"]
        self.recipe = recipes.load("microcosm", [*common, *SMALL, *words])
        self.policy = policies.load(self.recipe.model, self.recipe.lora, Place(CPU), 304, 0)
        judges = [("microcosm", 1.0, models.load_judge(self.recipe, self.recipe.reward.judges[0], CPU))]
        stops = chat_template.stop_token_ids(self.policy.tokenizer)
        rewards = RewardFunction(judges, stops, self.recipe.reward, self.recipe.rollout.group_size, 0)
        self.batches, self.critic = [], critic_of(self.recipe, self.policy.model)
        rows = prepared.prompt_rows(self.recipe).train
        taken = handed_on(rewards, self.batches.append, rows)
        materials = Materials(self.policy, taken, rows, Place(CPU), self.critic)
        micro = self.recipe.optimizer.micro_batch
        an_update = self.recipe.rollout.batch // self.recipe.algorithm.updates_per_rollout
        self.trainer = composed_trainer(self.recipe, materials, folder, [], an_update if micro == "auto" else micro)

    def train(self):
        torch.manual_seed(0)
        self.trainer.train()
        return self.adapter()

    def adapter(self):
        lora = [(n, p) for n, p in self.policy.model.named_parameters() if ".default." in n]
        return torch.cat([p.detach().flatten() for _, p in sorted(lora)])


def test_group_advantages_given_a_token_at_a_time_make_grpos_adapter_to_the_bit(tmp_path, monkeypatch):
    """What stands between a rollout and its loss carries (B, T) as it carries (B,), and the critic touches nothing."""
    words = ["algorithm.loss=dr_grpo", "algorithm.updates_per_rollout=2", "optimizer.micro_batch=2"]
    grpo = Run(tmp_path / "grpo", *words).train()

    def groups(trainer, recipe, critic, rollout, rewards_B):
        group = rewards_B.view(-1, recipe.rollout.group_size)
        return (group - group.mean(1, keepdim=True)).view(-1, 1) * rollout["completion_mask"].float()

    fresh = Run(tmp_path / "fresh", *words).adapter()
    monkeypatch.setattr(ppo, "token_advantages", groups)
    assert torch.equal(Run(tmp_path / "ppo", "algorithm.name=ppo", *words).train(), grpo)
    assert not torch.equal(fresh, grpo)


def test_a_rollout_has_whitened_advantages_of_what_the_critic_said_before(tmp_path):
    run = Run(tmp_path, "algorithm.name=ppo", "algorithm.gae_lambda=0.5", "optimizer.micro_batch=2")
    torch.nn.init.normal_(run.critic.head.weight, 0, 0.1)
    run.critic.rollouts, before = 1, []
    learn = run.critic.optimizer.step
    run.critic.optimizer.step = lambda: (before.append(1), learn())
    values, asked = ppo._values, []
    ppo._values = lambda *words: asked.append(values(*words)) or asked[-1]
    try:
        torch.manual_seed(0)
        rows = [row for row in run.trainer.train_dataset.select(range(2)) for _ in range(4)]
        output = run.trainer._generate_and_score_completions(rows)
    finally:
        ppo._values = values
    mask = output["completion_mask"].float()
    rewards = torch.tensor(run.batches[0].rewards_B, dtype=torch.float32)
    last = mask.sum(1).long() - 1
    rewards_BT = torch.zeros_like(mask)
    rewards_BT[torch.arange(8), last] = rewards
    expected = advantages.generalized_advantages(rewards_BT, asked[0] * mask, mask, 1.0, 0.5)
    found = output["advantages"]
    assert found.shape == mask.shape
    assert torch.allclose(found, advantages.whitened(expected, mask), atol=1e-5)
    assert float((found * mask).sum() / mask.sum()) == pytest.approx(0, abs=1e-5)
    assert len(before) == 1  # one update of the critic's, as of the policy's
    told = run.trainer._metrics["train"]
    explained = 1 - _variance(expected, mask) / _variance(expected + asked[0] * mask, mask)
    assert told["explained_variance"] == [pytest.approx(explained, abs=1e-4)]
    assert told["value_mean"] == [pytest.approx(float((asked[0] * mask).sum() / mask.sum()), abs=1e-4)]
    assert told["advantage_std"] == [pytest.approx(_variance(expected, mask) ** 0.5, rel=1e-4)]


def _variance(values, mask):
    return float(values[mask.bool()].var())


def test_the_values_of_a_whole_rollout_are_each_rows_own(tmp_path):
    """Sorted, cut and put back: rows of several lengths, truncated and finished."""
    run = Run(tmp_path, "algorithm.name=ppo", "optimizer.micro_batch=2")
    torch.nn.init.normal_(run.critic.head.weight)
    lengths = [3, 12, 1, 7, 12, 5, 2, 9]
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in lengths])
    torch.manual_seed(1)
    rows = {
        "prompt_ids": torch.randint(20, 500, (8, 6)),
        "prompt_mask": torch.tensor([[0] * (n % 4) + [1] * (6 - n % 4) for n in range(8)]),
        "completion_ids": torch.randint(20, 500, (8, 12)) * mask,
        "completion_mask": mask,
    }
    found = ppo._values(run.trainer, run.critic, rows)
    for i, length in enumerate(lengths):
        alone = {key: value[i : i + 1] for key, value in rows.items()}
        one = ppo._values(run.trainer, run.critic, alone)
        torch.testing.assert_close(found[i, :length], one[0, :length], rtol=1e-4, atol=1e-4)


def test_the_critic_of_one_micro_batch_and_of_many_learn_alike(tmp_path):
    learnt = []
    for size in (8, 2):
        run = Run(tmp_path / str(size), "algorithm.name=ppo", f"optimizer.micro_batch={size}")
        torch.manual_seed(0)
        for _ in range(2):
            rows = [row for row in run.trainer.train_dataset.select(range(2)) for _ in range(4)]
            run.trainer._generate_and_score_completions(rows)
        learnt.append(torch.cat([p.detach().flatten() for p in run.critic.parameters()]))
        assert all(p.grad is None for p in run.critic.parameters())  # which Trainer would clip the policy's with
    assert (learnt[0] - learnt[1]).norm() < 1e-3 * learnt[0].norm()


@pytest.mark.parametrize("batch", [8, 9])
def test_each_prompt_may_be_asked_once(tmp_path, batch):
    words = [f"rollout.batch={batch}", "rollout.group_size=1", "algorithm.name=ppo", "budget.steps=1"]
    run = Run(tmp_path, *words)
    fresh = run.adapter()
    assert not torch.equal(run.train(), fresh)
    asked = [row[-1]["content"] for row in run.batches[0].prompts]
    assert len(set(asked)) > batch // 2
    assert asked == [row["prompt"][-1]["content"] for row in run.trainer.train_dataset.select(range(batch))]


def test_in_the_warm_up_the_critic_alone_learns(tmp_path):
    run = Run(tmp_path, "algorithm.name=ppo", "algorithm.critic.warmup_rollouts=2")
    fresh, critic = run.adapter(), torch.cat([p.detach().flatten() for p in run.critic.parameters()])
    assert torch.equal(run.train(), fresh)
    assert run.critic.rollouts == 2
    assert not torch.equal(torch.cat([p.detach().flatten() for p in run.critic.parameters()]), critic)


def test_the_kl_penalty_is_of_each_token_and_not_in_the_loss(tmp_path):
    run = Run(tmp_path, "algorithm.name=ppo", "algorithm.kl=0.5")
    assert run.trainer.beta == 0
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if ".default." in name and "lora_B" in name:
                parameter.normal_(0, 0.1)
    ids = torch.randint(20, 500, (2, 5), generator=torch.Generator().manual_seed(0))
    rollout = {"prompt_ids": ids[:, :2], "prompt_mask": torch.ones(2, 2, dtype=torch.long),
               "completion_ids": ids[:, 2:], "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}  # fmt: skip
    penalty = ppo._kl_penalty(run.trainer, 0.5, rollout)
    with torch.no_grad():
        policys = run.policy.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
        with run.policy.model.disable_adapter():
            bases = run.policy.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
    expected = 0.5 * (policys - bases).gather(-1, ids[:, 2:, None])[..., 0] * rollout["completion_mask"]
    torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=1e-5)
    assert penalty.abs().sum() > 0
    assert run.trainer._metrics["train"]["kl"] == [pytest.approx(float(expected.sum() / 5 / 0.5), abs=1e-5)]
    assert ppo._kl_penalty(run.trainer, 0.0, rollout) == 0.0


def test_what_runs_out_of_memory_in_the_critics_pass_leaves_the_policy_in_effect(tmp_path, monkeypatch):
    run = Run(tmp_path, "algorithm.name=ppo")

    def refused(rows):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(run.critic, "values", refused)
    with pytest.raises(torch.OutOfMemoryError):
        run.train()
    assert run.policy.model.active_adapters == ["default"]
    assert all(p.requires_grad == (".default." in n) for n, p in run.policy.model.named_parameters() if "lora_" in n)


def test_rows_of_stop_tokens_are_the_policys_alone(tmp_path):
    run = Run(tmp_path, "algorithm.name=ppo", "lora.train_stop_tokens=true", "budget.steps=1")
    rows = {n: p for n, p in run.policy.model.named_parameters() if "trainable_tokens_delta" in n}
    before = {n: p.detach().clone() for n, p in rows.items()}
    run.train()
    assert [n for n in rows if ".critic" in n] == []
    assert any(not torch.equal(p, before[n]) for n, p in rows.items())


def test_in_16_bits_the_critic_learns_in_fp32(tmp_path, monkeypatch):
    """As on a GPU: bf16 around NF4 under Accelerate's autocast, recomputed activations."""
    monkeypatch.setattr(device_module, "float_dtype", lambda device, cpu_dtype="": torch.bfloat16)
    words = ["optimizer.gradient_checkpointing=true", "optimizer.micro_batch=4", "algorithm.critic.learning_rate=1e-5"]
    run = Run(tmp_path, "algorithm.name=ppo", *words)
    before = {n: p.detach().clone() for n, p in run.critic.adapter_weights().items()}
    run.train()
    assert {p.dtype for p in run.critic.parameters()} == {torch.float32}
    moved = [(p != before[n]).float().mean() for n, p in run.critic.adapter_weights().items() if "lora_B" in n]
    assert float(torch.stack(moved).mean()) > 0.99  # in bf16 most updates round to nothing
