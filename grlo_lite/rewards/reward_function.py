"""What TRL calls with each batch of completions."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.models.chat_template import Messages
from grlo_lite.models.reward_model import RewardModel
from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards.python_rewards import PythonRewards
from grlo_lite.rewards.scored_batch import ScoredBatch
from grlo_lite.rewards.shaping import repeated_4grams, shaped_rewards


class RewardFunction:
    """From a batch of completions to the rewards that are trained on."""

    def __init__(
        self,
        judges: list[tuple[str, float, RewardModel]],
        stop_ids: list[int],
        reward: Reward,
        group_size: int,
        seed: int,
    ):
        self.judges = judges  # name, weight, model
        self.python = PythonRewards(reward.python)
        self.stop_ids = frozenset(stop_ids)
        self.reward = reward
        self.group_size = group_size
        self.seed = seed

    def score(self, conversations: list[Messages]) -> list[float]:
        """The judges' raw scores, weighted and summed. Raises RewardError where one is not finite."""
        return self._combined(self._judged(conversations)).tolist()

    def scored(
        self, prompts: list[Messages], completions: list[Messages], completion_ids: list[list[int]], step: int
    ) -> ScoredBatch:
        """The batch with its rewards, one a completion. `step` varies the shuffling.

        Raises RewardError where a judge gives no finite score, and BadInput where the first step is masked whole.
        """
        began = time.monotonic()
        judged = self._judged([p + c for p, c in zip(prompts, completions, strict=True)], completion_ids=completion_ids)
        raw_B = self._combined(judged)
        tokens_B = np.array([len(ids) for ids in completion_ids])
        truncated_B = np.array([ids[-1] not in self.stop_ids for ids in completion_ids])
        repeated_B = np.array([repeated_4grams(ids) for ids in completion_ids])
        rewards_B, parts = shaped_rewards(raw_B, truncated_B, tokens_B, repeated_B, self.reward, processes.gathered)
        masked_B = truncated_B & (self.reward.truncated.mode == "mask")
        if all(processes.gathered(bool(masked_B.all()))) and step == 0:
            raise BadInput(
                "reward.truncated.mode=mask, but every answer of the first step hit rollout.max_tokens, so nothing is "
                "left to learn from; use reward.truncated.mode=ordered, or raise rollout.max_tokens"
            )
        if self.reward.shuffle:
            random = np.random.default_rng([self.seed, step])
            rewards_B[~masked_B] = random.permutation(rewards_B[~masked_B])
        return ScoredBatch(
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

    def _judged(self, conversations: list[Messages], **more: Any) -> dict[str, np.ndarray]:
        """Each judge's raw scores and each Python function's rewards, by name, shape (B,)."""
        judged = {name: np.array(model.score(conversations)) for name, _, model in self.judges}
        return judged | self.python.scores(conversations, **more)

    def _combined(self, judged: dict[str, np.ndarray]) -> np.ndarray:
        weights = {name: weight for name, weight, _ in self.judges} | self.python.weights
        return np.sum([weight * judged[name] for name, weight in weights.items()], axis=0)


def handed_on(rewards: RewardFunction, take: Callable[[ScoredBatch], None]) -> Callable[..., list[float | None]]:
    """What TRL calls with each batch of completions for one reward each; `take` is handed every batch it makes.

    A reward is None, for TRL to leave out, where `reward.truncated.mode: mask` masks its completion.
    """

    def reward(
        prompts: list[Messages],
        completions: list[Messages],
        completion_ids: list[list[int]],
        trainer_state: Any = None,
        **_: Any,
    ) -> list[float | None]:
        step = trainer_state.global_step if trainer_state else 0
        batch = rewards.scored(prompts, completions, completion_ids, step)
        take(batch)
        return [None if masked else float(r) for r, masked in zip(batch.rewards_B, batch.masked_B, strict=True)]

    return reward
