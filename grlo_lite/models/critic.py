"""PPO's critic: a value head and a second adapter on the policy's own base."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grlo_lite.recipe.schema import Recipe

NAME = "critic"
WEIGHTS, OPTIMIZER = "critic.safetensors", "critic_optimizer.pt"  # in a checkpoint; PEFT would take a folder for one


class Critic:
    """The reward that an unfinished completion will earn, in reward units, before each of its tokens.

    The adapter is in effect inside `values` and `in_effect` alone, so that the policy's outputs, its trainable
    parameters and what TRL, Trainer and PEFT do with them stay as they would be without it. The head is no part of the
    model; it begins at zero. All that is learnt is in fp32.
    """

    def __init__(self, model: Any, recipe: Recipe):
        wanted = recipe.algorithm.critic
        self.model, self.kind = model, wanted.kind
        if self.kind == "adapter":
            _add_adapter(model, recipe)
        width = model.config.get_text_config().hidden_size
        head = torch.nn.Linear(width, 1, device="meta", dtype=torch.float32)  # which draws no random number
        self.head = head.to_empty(device=model.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.rollouts = 0  # that it has learnt from
        self.variances: list[tuple[float, float]] = []  # of the newest ones' returns: unexplained, whole
        self.optimizer = _optimizer(recipe.optimizer.name)(
            self.parameters(), lr=recipe.critic_learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
        )

    def adapter_weights(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's matrices by their names in the model; none where the head is all there is."""
        return {name: p for name, p in self.model.named_parameters() if f".{NAME}." in name}

    def parameters(self) -> list[torch.nn.Parameter]:
        """What it learns: the adapter, the head's weight and bias."""
        return [*self.adapter_weights().values(), *self.head.parameters()]

    @contextmanager
    def in_effect(self) -> Iterator[None]:
        """Inside, the base has the critic's adapter and no other; a forward and its backward pass both belong here,
        for PEFT freezes the adapter that it leaves.
        """
        if self.kind == "head":
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(NAME)
        try:
            yield
        finally:
            self.model.set_adapter("default")

    def values(self, rows: dict[str, Tensor]) -> Tensor:
        """Values before each token of the completions, shape (B, T), fp32, by the adapter that is in effect.

        `rows` has `prompt_ids` and `prompt_mask` (B, P), padded on the left, `completion_ids` and `completion_mask`
        (B, T), padded on the right. The state before a completion's first token is that of the prompt's last.
        """
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
        mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
        tokens = rows["completion_ids"].shape[1]
        backbone = self.model.get_base_model().base_model
        with torch.no_grad() if self.kind == "head" else nullcontext():
            states = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        before_BTH = states[:, -tokens - 1 : -1]
        with torch.autocast(before_BTH.device.type, enabled=False):
            return self.head(before_BTH.float())[..., 0]

    def state(self) -> dict[str, Any]:
        """All that it has learnt and how it goes on, as nested dicts of tensors and numbers."""
        weights = {name: parameter.data for name, parameter in self.adapter_weights().items()}
        head = {f"head.{name}": parameter.data for name, parameter in self.head.named_parameters()}
        seen = {"rollouts": self.rollouts, "variances": list(self.variances)}
        return {"weights": weights | head, "optimizer": self.optimizer.state_dict(), **seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state that `state` gave."""
        mine = self.state()["weights"]
        with torch.no_grad():
            for name, saved in state["weights"].items():
                mine[name].copy_(saved)
        for parameter in self.parameters():
            parameter.grad = None
        self.optimizer.load_state_dict(state["optimizer"])
        self.rollouts, self.variances = state["rollouts"], list(state["variances"])

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint."""
        self.save_weights(folder)
        state = self.state()
        torch.save({key: value for key, value in state.items() if key != "weights"}, folder / OPTIMIZER)

    def save_weights(self, folder: Path) -> None:
        """Writes adapter and head as safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        save_file({name: saved.contiguous() for name, saved in self.state()["weights"].items()}, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """Goes on from what a checkpoint holds."""
        from safetensors.torch import load_file

        weights = load_file(folder / WEIGHTS)
        self.restore({"weights": weights, **torch.load(folder / OPTIMIZER, weights_only=True)})

    @property
    def checkpoint_bytes(self) -> int:
        """What it adds to a checkpoint at most: itself and AdamW's two moments."""
        return 3 * sum(p.numel() * p.element_size() for p in self.parameters())


def critic_of(recipe: Recipe, model: Any) -> Critic | None:
    """The critic of a recipe's algorithm, on the policy's model; None where it has none."""
    return Critic(model, recipe) if recipe.algorithm.name == "ppo" else None


def _add_adapter(model: Any, recipe: Recipe) -> None:
    """A fresh adapter on the policy's layers, not in effect, that leaves the random numbers of the run as they were."""
    policys = model.peft_config["default"]
    rank = recipe.critic_rank
    config = replace(
        policys, r=rank, lora_alpha=recipe.lora.alpha * rank / recipe.lora.rank, trainable_token_indices=None
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(recipe.seed)
        model.add_adapter(NAME, config)
    for name, parameter in model.named_parameters():
        if f".{NAME}." in name:
            parameter.data = parameter.data.float()
    model.set_adapter("default")


def _optimizer(name: str) -> Any:
    """AdamW, in 8 bits where the policy's is."""
    if name == "adamw":
        return torch.optim.AdamW
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit
