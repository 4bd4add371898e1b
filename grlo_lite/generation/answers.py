"""Answers of a loaded model to formatted prompts, a padded batch at a time."""

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch

from grlo_lite.generation.decoders import Decoder, Decoding, kits
from grlo_lite.generation.decoding import Answers, Prompts, Watch, half
from grlo_lite.generation.engine_table import CPU_ROWS
from grlo_lite.generation.kv_cache import kv_bytes
from grlo_lite.generation.request import Answer, Sampling
from grlo_lite.generation.sampling import seeded
from grlo_lite.generation.twin import base_of, copy_bytes, copy_finds_room
from grlo_lite.machine.device import free_bytes, until_it_fits

Texts = list[str] | list[list[int]]  # formatted prompts, or their tokens


def prompts_of(model: Any, tokenizer: Any, texts: Texts, share: list[float] | None = None) -> Prompts:
    """Formatted texts, or their tokens, as one left-padded batch on the model's device, with the model's own stop
    tokens; none are added. `share` is how much of the adapter each one gets, for a twin with one beside it.
    """
    stop_ids = model.generation_config.eos_token_id
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else text for text in texts]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
    return Prompts(
        batch["input_ids"].to(model.device),
        batch["attention_mask"].bool().to(model.device),
        stop_ids if isinstance(stop_ids, list) else [stop_ids],
        tokenizer.pad_token_id,
        None if share is None else torch.tensor(share, device=model.device),
    )


def answers(
    model: Any, tokenizer: Any, texts: Texts, sampling: Sampling, decoder: Decoder | None = None
) -> list[Answer]:
    """One answer a text, in order, from one batch; each row ends at its own stop token, stop text or length.

    Decoded by `decoder` where one is at hand, else by the model's twin, made for this batch.
    """
    prompts = prompts_of(model, tokenizer, texts)
    watch = stopping_at(tokenizer, sampling.stops) if sampling.stops else None
    said = Answers(prompts, sampling)
    with nullcontext(decoder) if decoder is not None else kits(model) as decodes:
        decodes(prompts, said, len(texts), watch)
    return [answer_of(tokenizer, row, set(prompts.ends), sampling) for row in said.rows()]


def completion_ids(model: Any, tokenizer: Any, texts: list[str], sampling: Sampling) -> list[list[int]]:
    """One answer's tokens a text, in order, as a rollout has them: its stop token is the last, where one ended it.

    Where memory runs out, half as many are decoded together, and what has ended is kept.
    """
    prompts = prompts_of(model, tokenizer, texts)
    said, at_once = Answers(prompts, sampling), len(texts)

    def attempt() -> None:
        with kits(model) as decodes:
            decodes(prompts, said, at_once, None)

    def smaller() -> None:
        nonlocal at_once
        at_once = half(at_once)

    until_it_fits(attempt, smaller)
    return said.rows()


def stopping_at(tokenizer: Any, stops: tuple[str, ...]) -> Watch:
    """Ends a row once its text holds one of the stops."""
    said: dict[int, list[int]] = {}
    tail = max(map(len, stops)) + 8  # tokens that may hold a whole stop; none has less than a character of it

    def watch(rows: list[int], tokens: list[int]) -> Collection[int]:
        ended = set()
        for row, token in zip(rows, tokens, strict=True):
            ids = said.setdefault(row, [])
            ids.append(token)
            text = tokenizer.decode(ids[-tail:], skip_special_tokens=True)
            if any(stop in text for stop in stops):
                ended.add(row)
        return ended

    return watch


def answer_of(tokenizer: Any, row: list[int], stop_ids: set[int], sampling: Sampling) -> Answer:
    """The answer whose tokens these are, the stop token that ended it among them."""
    finished = row[-1] in stop_ids
    row = row[:-1] if finished else row
    text = tokenizer.decode(row, skip_special_tokens=True)
    cuts = [at for stop in sampling.stops if (at := text.find(stop)) >= 0]
    return Answer(text[: min(cuts, default=len(text))], len(row), not finished and not cuts)


def tokens_at_once(model: Any) -> int:
    """Padded tokens, prompt and answer, whose KV cache fits into 60 % of the GPU memory that is free beside the twin's
    dense copy; 65,536 on a CPU.
    """
    if model.device.type != "cuda":
        return 65_536
    bytes_a_token = model.config.num_hidden_layers * kv_bytes(model.config)
    copy = copy_bytes(base_of(model)) if copy_finds_room(base_of(model)) else 0
    return max(4096, int(0.6 * (free_bytes(model.device) - copy) / bytes_a_token))


def sampled_answers(
    policy: Any, texts: Texts, sampling: Sampling, at_once: int, seed: int, decoding: Decoding = kits
) -> list[Answer]:
    """One answer a formatted prompt, in order, `at_once` together; the same for the same seed, batch size and engine.

    Leaves the global random state as it found it.
    """
    said: list[Answer] = []
    with seeded(policy.model, seed), decoding(policy.model) as decodes:
        for start in range(0, len(texts), at_once):
            said += answers(policy.model, policy.tokenizer, texts[start : start + at_once], sampling, decodes)
    return said


def rows_at_once(model: Any, rollout_batch: int) -> int:
    """How many answers are sampled together outside of training: on a GPU as many as a step's rollouts."""
    return rollout_batch if model.device.type == "cuda" else CPU_ROWS
