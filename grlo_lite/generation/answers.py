"""Answers of a loaded model to formatted prompts, a padded batch at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from grlo_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Temperature 0 is greedy; `stops` are texts that end an answer and are not part of it."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One answer without its end-of-turn token; `truncated` where `max_tokens` ended it."""

    text: str
    tokens: int
    truncated: bool


@contextmanager
def seeded(model: Any, seed: int) -> Iterator[None]:
    """Inside, random draws follow from the seed; outside, the global random state is as it was."""
    import torch

    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def generation_config(model: Any, tokenizer: Any, sampling: Sampling) -> Any:
    """Transformers' settings for a `Sampling`, with the model's own stop tokens."""
    from transformers import GenerationConfig

    drawn = {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p} if sampling.temperature else {}
    return GenerationConfig(
        do_sample=bool(sampling.temperature),
        max_new_tokens=sampling.max_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **drawn,
    )


def answers(model: Any, tokenizer: Any, texts: list[str], sampling: Sampling) -> list[Answer]:
    """One answer a text, in order, from one left-padded batch; no special tokens are added to the texts.

    Each row ends at its own stop token, whatever its neighbours do after theirs: decoding the whole row would let a
    finished answer ramble on for as long as the slowest row of the batch.
    """
    ends = set(_stop_ids(model))
    rows = _generated(model, tokenizer, texts, sampling)
    return [_answer(tokenizer, row, ends, sampling) for row in rows]


def completion_ids(model: Any, tokenizer: Any, texts: list[str], sampling: Sampling) -> list[list[int]]:
    """One answer's tokens a text, in order, as a rollout has them: its stop token is the last, where one ended it."""
    ends, longest = set(_stop_ids(model)), sampling.max_tokens
    rows = _generated(model, tokenizer, texts, sampling)
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), longest)] for row in rows]


def _stop_ids(model: Any) -> list[int]:
    ids = model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


def _generated(model: Any, tokenizer: Any, texts: list[str], sampling: Sampling) -> list[list[int]]:
    """What the model generates from one left-padded batch, without the prompts; short rows are padded on the right."""
    import torch

    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids_BT = batch["input_ids"].to(model.device)
    stopping = {"stop_strings": list(sampling.stops), "tokenizer": tokenizer} if sampling.stops else {}
    with torch.inference_mode():
        tokens_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=batch["attention_mask"].to(model.device),
            generation_config=generation_config(model, tokenizer, sampling),
            **stopping,
        )
    return tokens_BT[:, ids_BT.shape[1] :].tolist()


def _answer(tokenizer: Any, row: list[int], stop_ids: set[int], sampling: Sampling) -> Answer:
    length = next((i for i, token in enumerate(row) if token in stop_ids), len(row))
    finished = length < len(row)
    while not finished and length and row[length - 1] == tokenizer.pad_token_id:
        length -= 1
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    cuts = [at for stop in sampling.stops if (at := text.find(stop)) >= 0]
    return Answer(text[: min(cuts, default=len(text))], length, not finished and not cuts)


def tokens_at_once(model: Any) -> int:
    """Padded tokens, prompt and answer, whose KV cache fits into 60 % of the free GPU memory; 65,536 on a CPU."""
    from grlo_lite.machine.device import free_bytes

    if model.device.type != "cuda":
        return 65_536
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_a_token = 2 * config.num_hidden_layers * heads * head_dim * 2
    return max(4096, int(0.6 * free_bytes(model.device) / bytes_a_token))


def sampled_answers(
    model: Any, tokenizer: Any, texts: list[str], max_tokens: int, rows_at_once: int, seed: int
) -> list[str]:
    """One answer a formatted prompt, sampled at temperature 1 as in training, in order; the same for the same
    seed and batch size.

    Leaves the global random state as it found it.
    """
    sampling = Sampling(max_tokens)
    said: list[str] = []
    with seeded(model, seed):
        for start in range(0, len(texts), rows_at_once):
            said += [a.text for a in answers(model, tokenizer, texts[start : start + rows_at_once], sampling)]
    return said


def sampling(recipe: Recipe, policy: Any) -> dict[str, int]:
    """How many tokens an answer may have outside of training, and how many answers are sampled at once."""
    on_gpu = policy.model.device.type == "cuda"
    return {"max_tokens": recipe.rollout.max_tokens, "rows_at_once": recipe.rollout.batch if on_gpu else 512}
