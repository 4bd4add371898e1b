"""What the policy is trained on: rewards made of the reward models' raw scores, every part of them logged by itself."""

import time
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from grlo_lite import processes
from grlo_lite.recipe import Reward
from grlo_lite.reward import Messages, RewardModel


@dataclass(frozen=True)
class Rollouts:
    """One batch of rollouts: what was asked and answered, what the judges said, and what was made of it. B
    completions.
    """

    prompts: list[Messages]
    completions: list[str]
    group_size: int  # completions a prompt; those of one prompt stand together
    tokens_B: np.ndarray  # completion lengths
    truncated_B: np.ndarray  # True where rollout.max_tokens was hit
    repeated_B: np.ndarray  # share of repeated 4-grams
    judged: dict[str, np.ndarray]  # each judge's raw scores
    raw_B: np.ndarray  # the judges' scores, weighted and summed
    parts: dict[str, np.ndarray]  # what each kind of shaping added, in reward units
    rewards_B: np.ndarray  # what is trained on
    cut: int  # conversations longer than reward.max_tokens
    began: float  # time.monotonic() when scoring began
    ended: float


def shaped_rewards(
    raw_B: np.ndarray,
    truncated_B: np.ndarray,
    tokens_B: np.ndarray,
    repeated_B: np.ndarray,
    reward: Reward,
    lowest: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rewards, shape (B,), and what each kind of shaping that is on added to the raw scores to make them.

    `lowest` is the whole batch's lowest raw score, of which this may be one process's part. In order: what a
    truncated completion earns (`reward.truncated`), the length penalty for each 1,000 tokens beyond
    `length_free`, the repetition penalty times the share of repeated 4-grams, and the clip to ± `clip`.
    """
    parts = {}
    mode, value = reward.truncated.mode, reward.truncated.value
    instead_B = {"penalty": np.full_like(raw_B, lowest - value), "floor": np.full_like(raw_B, value)}
    parts["truncation"] = np.where(truncated_B, instead_B.get(mode, raw_B - value) - raw_B, 0.0)
    if reward.length_penalty:
        parts["length"] = -reward.length_penalty * np.clip(tokens_B - reward.length_free, 0, None) / 1000
    if reward.repetition_penalty:
        parts["repetition"] = -reward.repetition_penalty * repeated_B
    rewards_B = raw_B + sum(parts.values())
    if reward.clip is not None:
        parts["clip"] = np.clip(rewards_B, -reward.clip, reward.clip) - rewards_B
        rewards_B = rewards_B + parts["clip"]
    return rewards_B, parts


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
    ) -> list[float]:
        """One reward a completion. Raises RewardError where a judge gives no finite score."""
        began = time.monotonic()
        judged = self._judged([p + c for p, c in zip(prompts, completions, strict=True)])
        raw_B = self._combined(judged)
        tokens_B = np.array([len(ids) for ids in completion_ids])
        truncated_B = np.array([ids[-1] not in self.stop_ids for ids in completion_ids])
        repeated_B = np.array([repeated_4grams(ids) for ids in completion_ids])
        lowest = min(processes.gathered(float(raw_B.min())))
        rewards_B, parts = shaped_rewards(raw_B, truncated_B, tokens_B, repeated_B, self.reward, lowest)
        if self.reward.shuffle:
            rewards_B = np.random.default_rng([self.seed, trainer_state.global_step]).permutation(rewards_B)
        self.last = Rollouts(
            prompts=prompts,
            completions=[completion[-1]["content"] for completion in completions],
            group_size=self.group_size,
            tokens_B=tokens_B,
            truncated_B=truncated_B,
            repeated_B=repeated_B,
            judged=judged,
            raw_B=raw_B,
            parts=parts,
            rewards_B=rewards_B,
            cut=max(model.cut for _, _, model in self.judges),
            began=began,
            ended=time.monotonic(),
        )
        return rewards_B.tolist()

    def _judged(self, conversations: list[Messages]) -> dict[str, np.ndarray]:
        return {name: np.array(model.score(conversations)) for name, _, model in self.judges}

    def _combined(self, judged: dict[str, np.ndarray]) -> np.ndarray:
        return np.sum([weight * judged[name] for name, weight, _ in self.judges], axis=0)


def joined(batches: list[Rollouts]) -> Rollouts:
    """One batch made of each process's part of it, in order; the scoring ended with the last of them."""
    if len(batches) == 1:
        return batches[0]

    def of(key: str) -> list[Any]:
        return [getattr(batch, key) for batch in batches]

    def arrays(key: str) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in of(key)]) for name in of(key)[0]}

    return Rollouts(
        prompts=list(chain.from_iterable(of("prompts"))),
        completions=list(chain.from_iterable(of("completions"))),
        group_size=batches[0].group_size,
        tokens_B=np.concatenate(of("tokens_B")),
        truncated_B=np.concatenate(of("truncated_B")),
        repeated_B=np.concatenate(of("repeated_B")),
        judged=arrays("judged"),
        raw_B=np.concatenate(of("raw_B")),
        parts=arrays("parts"),
        rewards_B=np.concatenate(of("rewards_B")),
        cut=sum(of("cut")),
        began=batches[0].began,
        ended=batches[0].ended,
    )


def repeated_4grams(ids: list[int]) -> float:
    """The share of a completion's token 4-grams that occurred in it before; 0 where it is too short to have any."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
