"""Whether a policy can end an answer at all: how often it does, by which stop token, and how likely each is where an
answer should end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from grlo_lite.generation.answers import completion_ids
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.sampling import seeded
from grlo_lite.models import chat_template
from grlo_lite.recipe.schema import Recipe

PROMPTS = 16  # that a policy is asked; one batch
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


@dataclass(frozen=True)
class Endings:
    """How a policy's answers to some prompts ended. `chances` are the mean probabilities of the stop tokens, and of the
    likeliest other special token, behind the last sentence of each answer.
    """

    answers: int
    by: dict[str, int]  # the answers that each stop token ended
    tokens: float | None  # how long those that ended are on average
    chances: dict[str, float]
    other: tuple[str, float] | None

    @property
    def ended(self) -> int:
        return sum(self.by.values())


def endings(policy: Any, prompts: list[list[dict[str, str]]], max_tokens: int, temperature: float) -> Endings:
    """Asks the policy each prompt once, as in training. Leaves the random state and the model's mode as they were."""
    model, tokenizer = policy.model, policy.tokenizer
    stop_ids = chat_template.stop_token_ids(tokenizer)
    texts = [chat_template.formatted(tokenizer, prompt) for prompt in prompts]
    with _evaluating(model), seeded(model, 0):
        said = completion_ids(model, tokenizer, texts, Sampling(max_tokens, temperature))
        asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
        heads = [
            ids + row[: _where_it_should_end(tokenizer, row, stop_ids)] for ids, row in zip(asked, said, strict=True)
        ]
        chances_V = _next_token_chances(model, tokenizer, heads)
    others = (set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)) - set(stop_ids)
    other = max(others, key=lambda token: chances_V[token], default=None)
    done = [row for row in said if row[-1] in stop_ids]
    name = tokenizer.convert_ids_to_tokens
    return Endings(
        len(said),
        {name(token): sum(row[-1] == token for row in done) for token in stop_ids},
        sum(map(len, done)) / len(done) if done else None,
        {name(token): float(chances_V[token]) for token in stop_ids},
        None if other is None else (name(other), float(chances_V[other])),
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    yield
    model.train(was_training)


def _where_it_should_end(tokenizer: Any, row: list[int], stop_ids: list[int]) -> int:
    """How many tokens of an answer stand before its end: it ended there, else its last whole sentence did, else all."""
    if row[-1] in stop_ids:
        return len(row) - 1
    ends = [i for i, token in enumerate(row, 1) if tokenizer.decode([token]).rstrip().endswith(SENTENCE_ENDS)]
    return ends[-1] if ends else len(row)


def _next_token_chances(model: Any, tokenizer: Any, rows: list[list[int]]) -> Any:
    """The mean probability of each token of the vocabulary behind the rows, shape (V,)."""
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits_BV = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits_BV.float().softmax(-1).mean(0).cpu()


def found(seen: Endings, recipe: Recipe) -> str:
    """What was seen, in a line."""
    by = ", ".join(f"{count} by {token}" for token, count in seen.by.items() if count)
    length = f" ({by}), after {seen.tokens:.0f} tokens on average" if seen.ended else ""
    chances = ", ".join(f"{token} {chance:.2g}" for token, chance in seen.chances.items())
    return (
        f"{seen.ended} of {seen.answers} answers end within rollout.max_tokens={recipe.rollout.max_tokens}{length}; "
        f"where one should, the chance of {chances or 'a stop token is not known'}"
    )


def cannot_end(seen: Endings, recipe: Recipe) -> bool:
    """Whether no answer of the whole run can be expected to end: none did, and the chance of it is below one in all
    that the run will sample.
    """
    return not seen.ended and sum(seen.chances.values()) * recipe.budget.steps * recipe.rollout.batch < 1


def mend(seen: Endings, recipe: Recipe) -> str:
    """What to change where no answer ended; empty where one did."""
    if seen.ended:
        return ""
    chance, longer = sum(seen.chances.values()), f"raise rollout.max_tokens={recipe.rollout.max_tokens}"
    if seen.other and seen.other[1] > max(chance, 0.01):
        token, likely = seen.other
        return f"it goes on with {token} there (chance {likely:.2g}): name that as model.eos_token, or {longer}"
    if not seen.chances:
        return "name the token that ends a text as model.eos_token"
    if not cannot_end(seen, recipe):
        return f"it can end, but seldom does so in time: {longer}, or leave it to reward.truncated.mode=ordered"
    if recipe.lora.train_stop_tokens:
        return f"it has never learnt to end, and lora.train_stop_tokens is on already: {longer}"
    return f"it has never learnt to end: set lora.train_stop_tokens=true, and {longer}"
