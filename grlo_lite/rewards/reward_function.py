"""What TRL calls with each batch of completions."""

import time
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.models.reward_model import Messages, RewardModel
from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards.scored_batch import Rollouts
from grlo_lite.rewards.shaping import repeated_4grams, shaped_rewards


class RewardFunction:
    """What TRL calls with each batch of completions. `last` is the batch it was called with most recently."""

    __name__ = "reward"

    def __init__(
        self,
        judges: list[tuple[str, float, RewardModel]],
        stop_ids: list[int],
        reward: Reward,
        group_size: int,
        seed: int,
    ):
        self.judges = judges  # name, weight, model
        self.stop_ids = frozenset(stop_ids)
        self.reward = reward
        self.group_size = group_size
        self.seed = seed
        self.last: Rollouts | None = None

    def score(self, conversations: list[Messages]) -> list[float]:
        """The judges' raw scores, weighted and summed. Raises RewardError where one is not finite."""
        return self._combined(self._judged(conversations)).tolist()

    def __call__(
        self,
        prompts: list[Messages],
        completions: list[Messages],
        completion_ids: list[list[int]],
        trainer_state: Any = None,
        **_: Any,
    ) -> list[float | None]:
        """One reward a completion; None, for TRL to leave out, where `reward.truncated.mode: mask` masks it.

        Raises RewardError where a judge gives no finite score, and BadInput where the first step is masked whole.
        """
        began = time.monotonic()
        judged = self._judged([p + c for p, c in zip(prompts, completions, strict=True)])
        raw_B = self._combined(judged)
        tokens_B = np.array([len(ids) for ids in completion_ids])
        truncated_B = np.array([ids[-1] not in self.stop_ids for ids in completion_ids])
        repeated_B = np.array([repeated_4grams(ids) for ids in completion_ids])
        rewards_B, parts = shaped_rewards(raw_B, truncated_B, tokens_B, repeated_B, self.reward, processes.gathered)
        masked_B = truncated_B & (self.reward.truncated.mode == "mask")
        if all(processes.gathered(bool(masked_B.all()))) and trainer_state.global_step == 0:
            raise BadInput(
                "reward.truncated.mode=mask, but every answer of the first step hit rollout.max_tokens, so nothing is "
                "left to learn from; use reward.truncated.mode=ordered, or raise rollout.max_tokens"
            )
        if self.reward.shuffle:
            random = np.random.default_rng([self.seed, trainer_state.global_step])
            rewards_B[~masked_B] = random.permutation(rewards_B[~masked_B])
        self.last = Rollouts(
            prompts=prompts,
            completions=[completion[-1]["content"] for completion in completions],
            group_size=self.group_size,
            tokens_B=tokens_B,
            truncated_B=truncated_B,
            masked_B=masked_B,
            repeated_B=repeated_B,
            judged=judged,
            raw_B=raw_B,
            parts=parts,
            rewards_B=rewards_B,
            cut=max(model.cut for _, _, model in self.judges),
            began=began,
            ended=time.monotonic(),
        )
        return [None if masked else float(r) for r, masked in zip(rewards_B, masked_B, strict=True)]

    def _judged(self, conversations: list[Messages]) -> dict[str, np.ndarray]:
        return {name: np.array(model.score(conversations)) for name, _, model in self.judges}

    def _combined(self, judged: dict[str, np.ndarray]) -> np.ndarray:
        return np.sum([weight * judged[name] for name, weight, _ in self.judges], axis=0)
