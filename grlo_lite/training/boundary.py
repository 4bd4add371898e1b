"""The state at the newest rollout boundary."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import recursively_apply
from transformers import TrainerCallback

from grlo_lite.machine.untouched import random_state, restore_random_state
from grlo_lite.models.critic import Critic
from grlo_lite.rundir.layout import RunDir


@dataclass(eq=False)
class Boundary(TrainerCallback):
    """The state at the newest rollout boundary, in main memory, so that a step that ran out of memory in the middle
    can be made again from its beginning.
    """

    run: RunDir
    updates: int  # a rollout
    critic: Critic | None = None  # PPO's
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    def on_step_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **_):
        if state.global_step % self.updates:
            return
        assert optimizer is not None
        assert lr_scheduler is not None
        self.step = state.global_step
        self.lengths = self.run.journal_lengths()
        self.state = {
            "adapter": _on_cpu(trainable(model)),
            "optimizer": _on_cpu(optimizer.state_dict()),
            "scheduler": copy.deepcopy(lr_scheduler.state_dict()),
            "random": random_state(),
            "critic": _on_cpu(self.critic.state()) if self.critic else None,
        }

    def restore(self, trainer: Any) -> None:
        """Puts a trainer and the journals, whatever they were in the middle of, back to the boundary."""
        self.run.cut_journals(self.lengths)
        with torch.no_grad():
            for name, parameter in trainable(trainer.model).items():
                parameter.copy_(self.state["adapter"][name])
                parameter.grad = None
        trainer.optimizer.load_state_dict(self.state["optimizer"])
        trainer.lr_scheduler.load_state_dict(self.state["scheduler"])
        if self.critic:
            self.critic.restore(self.state["critic"])
        trainer.state.global_step = self.step
        restore_random_state(self.state["random"])


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with every tensor in main memory."""
    return recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), value)
