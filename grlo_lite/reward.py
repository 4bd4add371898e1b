"""The frozen reward model and the rewards made of its scores.

`RewardModel` turns conversations into raw scores; `shaped_rewards` turns raw scores into what the policy is trained
on; `RewardFunction` is the callable that TRL's trainers take, and keeps each batch of rollouts for the metrics.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from grlo_lite.recipe import BadInput, Truncated

Messages = list[dict[str, str]]


class RewardError(Exception):
    """The reward model gave something that is no score; a bug must never turn into a reward."""


class RewardModel:
    """A frozen sequence classifier with one logit, in eval mode, that scores conversations.

    Right padding, no KV cache, and a head in fp32: bf16 logits have steps of 0.125 at magnitude 16. The score is read
    at the last token that the attention mask covers, so it does not matter which token pads, even where it is the end
    of turn.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, tokens_per_batch: int):
        self.model = model.eval().requires_grad_(False)
        self.model.score.float()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.tokens_per_batch = tokens_per_batch
        self.bos = _bos_to_add(tokenizer)

    def token_ids(self, conversation: Messages) -> list[int]:
        """A conversation in the reward model's own chat template, with exactly one BOS where its tokenizer has one.

        What exceeds `max_tokens` is cut off the left, behind the BOS: the end of the answer is always seen.
        """
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.bos and ids[:1] != self.bos:
            ids = self.bos + ids
        if len(ids) > self.max_tokens:
            head = self.bos if ids[:1] == self.bos else []
            ids = head + ids[len(ids) - self.max_tokens + len(head) :]
        return ids

    def score(self, conversations: list[Messages]) -> list[float]:
        """One raw score a conversation, in order. Raises RewardError, naming the prompt, where one is not finite."""
        import torch

        rows = [tuple(self.token_ids(conversation)) for conversation in conversations]
        scores: dict[tuple[int, ...], float] = {}
        for batch in batches_under_budget(sorted(set(rows), key=lambda row: (len(row), row)), self.tokens_per_batch):
            with torch.inference_mode():
                scores.update(zip(batch, self._scores_of(batch), strict=True))
        for conversation, row in zip(conversations, rows, strict=True):
            if not np.isfinite(scores[row]):
                raise RewardError(
                    f"the reward model gave {scores[row]} for the prompt {conversation[-2]['content'][:80]!r}"
                )
        return [scores[row] for row in rows]

    def _scores_of(self, rows: list[tuple[int, ...]]) -> list[float]:
        import torch

        device, longest = self.model.device, len(rows[-1])
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        ids_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=device)
        mask_BT = (torch.arange(longest, device=device) < lengths_B[:, None]).long()
        hidden_BTD = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
        last_BD = hidden_BTD[torch.arange(len(rows), device=device), lengths_B - 1]
        return self.model.score(last_BD.float())[:, 0].tolist()


def batches_under_budget(rows: list[Any], tokens_per_batch: int) -> list[list[Any]]:
    """Rows, already sorted by length, cut into batches of at most `tokens_per_batch` padded tokens; a longer row goes
    alone.
    """
    batches: list[list[Any]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * len(row) <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def load(
    path: str, revision: str, quantization: str, device: Any, max_tokens: int, tokens_per_batch: int
) -> RewardModel:
    """The reward model at `path`, frozen. Raises BadInput unless it is a sequence classifier with a `score` head of
    one logit.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from grlo_lite.quantization import from_pretrained

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"reward.name={path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    architecture = ", ".join(config.architectures or ["unknown"])
    if "ForSequenceClassification" not in architecture or config.num_labels != 1:
        labels = f" with {config.num_labels} labels" if "ForSequenceClassification" in architecture else ""
        raise BadInput(
            f"reward.name={path!r} has no one-logit head: it is a {architecture}{labels}; "
            "choose a reward model that is a *ForSequenceClassification with num_labels=1, such as Skywork-Reward-V2"
        )
    if tokenizer.chat_template is None:
        raise BadInput(f"reward.name={path!r} has no chat template, so it cannot be told what to score")
    model = from_pretrained(AutoModelForSequenceClassification, path, revision, quantization, device, num_labels=1)
    if not hasattr(model, "score") or not model.score.weight.is_floating_point():
        raise BadInput(f"reward.name={path!r} is a {architecture} without a floating-point `score` head")
    return RewardModel(model, tokenizer, max_tokens, tokens_per_batch)


def _bos_to_add(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before a text of its own accord, if any."""
    starts = tokenizer("a")["input_ids"][:1]
    return starts if tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id] else []


def shaped_rewards(
    raw_B: np.ndarray,
    truncated_B: np.ndarray,
    tokens_B: np.ndarray,
    truncated: Truncated,
    length_penalty: float,
    length_free: int,
) -> np.ndarray:
    """The rewards that are trained on, shape (B,), in reward units.

    Truncated completions earn what `truncated` says; then `length_penalty` is taken off for each 1,000 tokens beyond
    `length_free`.
    """
    if truncated.mode == "penalty":
        instead_B = np.full_like(raw_B, raw_B.min() - truncated.value)
    elif truncated.mode == "floor":
        instead_B = np.full_like(raw_B, truncated.value)
    else:
        instead_B = raw_B - truncated.value
    rewards_B = np.where(truncated_B, instead_B, raw_B)
    return rewards_B - length_penalty * np.clip(tokens_B - length_free, 0, None) / 1000


@dataclass(frozen=True)
class Rollouts:
    """One batch of rollouts: what was asked and answered, what the reward model said, and what was made of it."""

    prompts: list[Messages]
    completions: list[str]
    tokens_B: np.ndarray  # completion lengths
    truncated_B: np.ndarray  # True where rollout.max_tokens was hit
    raw_B: np.ndarray  # the reward model's scores
    rewards_B: np.ndarray  # what is trained on
    repeated_B: np.ndarray  # share of repeated 4-grams
    began: float  # time.monotonic() when scoring began
    ended: float


class RewardFunction:
    """What TRL calls with each batch of completions. `last` is the batch it was called with most recently."""

    __name__ = "reward"

    def __init__(
        self,
        model: RewardModel,
        stop_ids: list[int],
        truncated: Truncated,
        length_penalty: float,
        length_free: int,
        shuffle_seed: int | None,
    ):
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.truncated = truncated
        self.length_penalty = length_penalty
        self.length_free = length_free
        self.shuffle_seed = shuffle_seed
        self.last: Rollouts | None = None

    def __call__(
        self,
        prompts: list[Messages],
        completions: list[Messages],
        completion_ids: list[list[int]],
        trainer_state: Any = None,
        **_: Any,
    ) -> list[float]:
        """One reward a completion. Raises RewardError where the reward model gives no finite score."""
        began = time.monotonic()
        raw_B = np.array(self.model.score([p + c for p, c in zip(prompts, completions, strict=True)]))
        tokens_B = np.array([len(ids) for ids in completion_ids])
        truncated_B = np.array([ids[-1] not in self.stop_ids for ids in completion_ids])
        rewards_B = shaped_rewards(raw_B, truncated_B, tokens_B, self.truncated, self.length_penalty, self.length_free)
        if self.shuffle_seed is not None:
            rewards_B = np.random.default_rng([self.shuffle_seed, trainer_state.global_step]).permutation(rewards_B)
        self.last = Rollouts(
            prompts=prompts,
            completions=[completion[-1]["content"] for completion in completions],
            tokens_B=tokens_B,
            truncated_B=truncated_B,
            raw_B=raw_B,
            rewards_B=rewards_B,
            repeated_B=np.array([repeated_4grams(ids) for ids in completion_ids]),
            began=began,
            ended=time.monotonic(),
        )
        return rewards_B.tolist()


def repeated_4grams(ids: list[int]) -> float:
    """The share of a completion's token 4-grams that occurred in it before; 0 where it is too short to have any."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
