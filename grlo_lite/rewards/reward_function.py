"""What TRL calls with each batch of completions."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.models.chat_template import Messages, with_messages
from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards.scored_batch import ScoredBatch
from grlo_lite.rewards.shaping import repeated_4grams, shaped_rewards
from grlo_lite.rewards.sources import Judges, sources


class RewardFunction:
    """From a batch of completions to the rewards that are trained on."""

    def __init__(
        self,
        judges: Judges,
        stop_ids: list[int],
        reward: Reward,
        group_size: int,
        seed: int,
    ):
        self.judges = judges
        self.sources = sources(reward, judges)
        self.stop_ids = frozenset(stop_ids)
        self.reward = reward
        self.group_size = group_size
        self.seed = seed

    def score(self, conversations: list[Messages]) -> list[float]:
        """The sources' raw scores of conversations that end with an answer, weighted and summed; those of a `Prompt` in
        front of it bring what stood beside it (`with_messages`). Raises RewardError where a judge's is not finite.
        """
        return self._combined(self._judged(conversations)).tolist()

    def scored(
        self,
        prompts: list[Messages],
        completions: list[Messages],
        completion_ids: list[list[int]],
        step: int,
        trainer_state: Any = None,
    ) -> ScoredBatch:
        """The batch with its rewards, one a completion. `step` varies the shuffling.

        Raises RewardError where a judge gives no finite score, and BadInput where the first step is masked whole or a
        function of the user's goes wrong.
        """
        began = time.monotonic()
        conversations = [with_messages(p, [*p, *c]) for p, c in zip(prompts, completions, strict=True)]
        judged = self._judged(conversations, completion_ids=completion_ids, trainer_state=trainer_state)
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
            cut=max((model.cut for _, _, model in self.judges), default=0),
            began=began,
            ended=time.monotonic(),
        )

    def _judged(self, conversations: list[Messages], **more: Any) -> dict[str, np.ndarray]:
        """Each source's raw scores by its name, shape (B,), NaN where it does not apply."""
        return {source.name: source.scores(conversations, **more) for source in self.sources}

    def _combined(self, judged: dict[str, np.ndarray]) -> np.ndarray:
        return np.nansum([source.weight * judged[source.name] for source in self.sources], axis=0)


def handed_on(
    rewards: RewardFunction, take: Callable[[ScoredBatch], None], rows: Sequence[Messages] = ()
) -> Callable[..., list[float | None]]:
    """What TRL calls with each batch of completions for one reward each; `take` is handed every batch it makes.

    TRL hands on, as `row`, which of `rows` was asked: what stands beside a prompt goes through no table of Arrow's.
    A reward is None, for TRL to leave out, where `reward.truncated.mode: mask` masks its completion.
    """

    def reward(
        prompts: list[Messages],
        completions: list[Messages],
        completion_ids: list[list[int]],
        trainer_state: Any = None,
        row: list[int] | None = None,
        **_: Any,
    ) -> list[float | None]:
        step = trainer_state.global_step if trainer_state else 0
        asked = [rows[number] for number in row] if row is not None and rows else prompts
        batch = rewards.scored(asked, completions, completion_ids, step, trainer_state)
        take(batch)
        return [None if masked else float(r) for r, masked in zip(batch.rewards_B, batch.masked_B, strict=True)]

    return reward
