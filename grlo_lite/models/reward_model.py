"""The frozen reward model: loading it, and scoring conversations by it. `shaping.py` makes rewards of the scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.machine.device import free_bytes, until_it_fits
from grlo_lite.models.chat_template import Messages, fetched, with_answers
from grlo_lite.models.names import judge_path
from grlo_lite.models.quantization import from_pretrained
from grlo_lite.models.scoring_budget import CPU_TOKENS, LEAST_TOKENS, batches_under_budget, token_bytes
from grlo_lite.recipe.schema import Heldout, Judge


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
        self.on_halved: Callable[[str, int, int], None] = lambda phase, was, now: None  # told when memory ran out
        self.cut = 0  # conversations of the last `score` that were longer than `max_tokens`

    def token_ids(self, conversation: Messages) -> list[int]:
        """A conversation in the reward model's own chat template, with exactly one BOS where its tokenizer has one.

        It is not cut to `max_tokens`; `score` does that.
        """
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    def score(self, conversations: list[Messages]) -> list[float]:
        """One raw score a conversation, in order; identical ones are scored once.

        What exceeds `max_tokens` is cut off the left, behind the BOS, so that the end of the answer is always seen;
        `cut` then holds how many conversations that befell. Raises RewardError, naming the prompt, where a score is
        not finite.
        """
        whole = [self.token_ids(conversation) for conversation in conversations]
        self.cut = sum(len(ids) > self.max_tokens for ids in whole)
        rows = [tuple(cut_from_left(ids, self.max_tokens, self.bos)) for ids in whole]
        with torch.inference_mode():
            scores = self._scores_by_row(sorted(set(rows), key=lambda row: (len(row), row)))
        for conversation, row in zip(conversations, rows, strict=True):
            if not np.isfinite(scores[row]):
                raise RewardError(
                    f"the reward model gave {scores[row]} for the prompt {conversation[-2]['content'][:80]!r}"
                )
        return [scores[row] for row in rows]

    def _scores_by_row(self, rows: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        """Each row's score; rows sorted by length. Where memory runs out, the budget is halved and what is left goes
        on under it. Raises DoesNotFit where one row by itself is too much.
        """
        scores: dict[tuple[int, ...], float] = {}

        def attempt() -> None:
            waiting = [row for row in rows if row not in scores]
            for batch in batches_under_budget(waiting, len, self.tokens_per_batch):
                scores.update(zip(batch, self._scores_of(batch), strict=True))

        def smaller() -> None:
            if self.tokens_per_batch <= len(rows[-1]):  # the longest is always among those that wait
                raise DoesNotFit(f"the reward of one conversation of {len(rows[-1])} tokens does not fit")
            self.on_halved("reward", self.tokens_per_batch, self.tokens_per_batch // 2)
            self.tokens_per_batch //= 2

        until_it_fits(attempt, smaller)
        return scores

    def _scores_of(self, rows: list[tuple[int, ...]]) -> list[float]:
        device, longest = self.model.device, len(rows[-1])
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        ids_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=device)
        mask_BT = (torch.arange(longest, device=device) < lengths_B[:, None]).long()
        hidden_BTD = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
        last_BD = hidden_BTD[torch.arange(len(rows), device=device), lengths_B - 1]
        return self.model.score(last_BD.float())[:, 0].tolist()


def fixed_scores(model: RewardModel) -> list[float]:
    """Scores of a good, a careless and an unrelated answer, to compare the model with itself."""
    asked: Messages = [{"role": "user", "content": "How do I keep a cut apple from turning brown?"}]
    answers = [
        "Cover the cut side with lemon juice, wrap the apple tightly and keep it in the fridge.",
        "Apples, well, apples and brown, brown and apples and so on and so on",
        "The capital of Peru is Lima.",
    ]
    return model.score(with_answers([asked] * len(answers), answers))


def require_unchanged(name: str, before: list[float], after: list[float]) -> None:
    """Raises BadInput where a score moved by more than 1 % of their spread, or of one reward unit if that is more."""
    worst = max(abs(a - b) for a, b in zip(after, before, strict=True))
    if worst > 0.01 * max(1.0, max(before) - min(before)):
        raise BadInput(
            f"reward.name={name!r} gives other scores once the policy is loaded (by up to {worst:.2g}): its forward "
            "has been patched; use backend=transformers, or a reward model of another family than the policy"
        )


def cut_from_left(ids: list[int], max_tokens: int, bos: list[int]) -> list[int]:
    """The last `max_tokens` ids, BOS first where there is one."""
    if len(ids) <= max_tokens:
        return ids
    return bos + ids[len(ids) - max_tokens + len(bos) :]


def load(
    judge: Judge | Heldout, device: Any, max_tokens: int, tokens_per_batch: int | str, cpu_dtype: str = "fp32"
) -> RewardModel:
    """A recipe's reward model, frozen; `tokens_per_batch="auto"` goes by the memory that is free once it is loaded.

    Raises BadInput unless it is a sequence classifier with a floating-point `score` head of one logit.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    path, revision = judge_path(judge.name or ""), judge.revision
    refusal = f"reward.name={path!r} cannot be loaded"
    config, tokenizer = (fetched(kind, path, revision, refusal) for kind in (AutoConfig, AutoTokenizer))
    if reason := why_not_one_logit(config):
        raise BadInput(
            f"reward.name={path!r} has no one-logit head: {reason}; choose a reward model that is a "
            "*ForSequenceClassification with num_labels=1, such as Skywork-Reward-V2"
        )
    if tokenizer.chat_template is None:
        raise BadInput(f"reward.name={path!r} has no chat template, so it cannot be told what to score")
    kind = AutoModelForSequenceClassification
    model = from_pretrained(kind, path, revision, judge.quantization, device, cpu_dtype, num_labels=1)
    if not hasattr(model, "score") or not model.score.weight.is_floating_point():
        raise BadInput(f"reward.name={path!r} is a {type(model).__name__} without a floating-point `score` head")
    if tokens_per_batch == "auto":
        tokens_per_batch = tokens_that_fit(model, device)
    return RewardModel(model, tokenizer, max_tokens, int(tokens_per_batch))


def why_not_one_logit(config: Any) -> str | None:
    """Why a model's configuration is not that of a one-logit sequence classifier, or None where it is."""
    architecture = ", ".join(config.architectures or ["model that does not say what it is"])
    if "ForSequenceClassification" in architecture:
        return None if config.num_labels == 1 else f"it is a {architecture} with {config.num_labels} labels"
    if "CausalLM" in architecture:
        return f"it is a {architecture}, whose value head, if it has one, gives a value a token and no score"
    return f"it is a {architecture}"


def tokens_that_fit(model: Any, device: Any) -> int:
    """How many padded tokens one forward may hold: CPU_TOKENS on a CPU; in half of a GPU's free memory as many as
    `token_bytes` says, one dequantized MLP matrix put aside.
    """
    if torch.device(device).type == "cpu":
        return CPU_TOKENS
    config = model.config.get_text_config()
    width = torch.finfo(model.dtype).bits // 8
    a_token = token_bytes(config.hidden_size, config.intermediate_size, width)
    matrix = width * config.hidden_size * config.intermediate_size
    return int(min(max((free_bytes(device) // 2 - matrix) // a_token, LEAST_TOKENS), 131_072))


def _bos_to_add(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before a text of its own accord, if any."""
    starts = tokenizer("a")["input_ids"][:1]
    return starts if tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id] else []
