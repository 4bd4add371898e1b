"""An engine behind `model.generate`, for the length of a run's rollouts."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from grlo_lite.generation.decoding import decoded
from grlo_lite.generation.engine_table import WORTH_FOLDING
from grlo_lite.generation.folded_weights import folded, folded_bytes
from grlo_lite.generation.kv_cache import ATTENTION, ROOM, attention_named, grouped_attention
from grlo_lite.machine.device import free_bytes
from grlo_lite.recipe.schema import Recipe


def rollouts(recipe: Recipe, policy: Any, chosen: str) -> AbstractContextManager[None]:
    """Inside, the policy generates by the engine that was chosen."""
    if chosen not in ("compact", "folded"):
        return nullcontext()

    return engine(policy.model, chosen == "folded", recipe.rollout.rows_at_once)


@contextmanager
def engine(model: Any, fold: bool, rows_at_once: int | str) -> Iterator[None]:
    """Inside, `model.generate` decodes with this engine, and is called as before.

    At most `rows_at_once` completions are decoded together; `auto` is all of them on a CPU, and on a GPU as many as
    `rows_that_fit` says, which also gives up folding where the dense copy would leave room for too few.
    """
    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before, plain = vars(model).get("generate"), model.generate

    def generate(input_ids: torch.Tensor, generation_config: Any, **inputs: Any) -> torch.Tensor:
        wanted = len(input_ids) if rows_at_once == "auto" else min(int(rows_at_once), len(input_ids))
        rows, folding = wanted, fold
        if model.device.type == "cuda":
            read = len(torch.unique(input_ids, dim=0)) * input_ids.shape[1] / len(input_ids)
            columns = input_ids.shape[1] + generation_config.max_new_tokens + ROOM
            rows, folding = rows_that_fit(model, fold, wanted, columns, read)
        with folded(model) if folding else nullcontext(), attention_named(model.config, ATTENTION):
            decoding = partial(decoded, rows_at_once=rows)
            said = plain(input_ids=input_ids, generation_config=generation_config, custom_generate=decoding, **inputs)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # the cache's columns and the dense copy are of other sizes than what comes next
        return said

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


def rows_that_fit(model: Any, fold: bool, wanted: int, columns: int, read: float) -> tuple[int, bool]:
    """How many completions fit into the free GPU memory at once, at most `wanted`, and whether to fold.

    A completion is counted with `columns` tokens of KV cache, with its logits while a token is drawn and with its share
    of the prompts, `read` tokens. Folding is given up where it would leave room for fewer than WORTH_FOLDING
    completions and for fewer than there are.
    """
    free = free_bytes(model.device)
    config = model.config.get_text_config()
    copy = folded_bytes(model)
    with_copy = rows_in(config, int(0.9 * free) - copy, columns, read)
    if fold and with_copy >= min(wanted, WORTH_FOLDING):
        return min(wanted, with_copy), True
    return min(wanted, max(1, rows_in(config, int(0.9 * free), columns, read))), False


def rows_in(config: Any, free: int, columns: int, read: float) -> int:
    """How many rows of `columns` tokens go into `free` bytes on a GPU: 16-bit keys and values, one layer of them twice
    while it grows, 16 bytes a logit while a token is drawn, and a layer's activations for `read` tokens of prompt.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_layer = columns * 2 * 2 * heads * head_dim
    reading = int(read * (16 * config.hidden_size + 8 * config.intermediate_size))
    return max(0, free) // ((config.num_hidden_layers + 1) * a_layer + 16 * config.vocab_size + reading)
