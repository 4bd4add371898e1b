"""The decoder's KV cache, written in place, and its attention over grouped keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "grlo_grouped"


ROOM = 256  # columns by which the KV cache grows


@contextmanager
def attention_named(config: Any, name: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def grouped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one new token a row, without copies of the keys for each query head; SDPA for anything longer.

    query (B, heads, 1, D), key and value (B, KV heads, T, D), attention_mask boolean (B, 1, 1, T) or None; returns
    (B, 1, heads, D).
    """
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query_BKGD = query.view(query.shape[0], key.shape[1], -1, query.shape[3])
    scores_BKGT = _products(query_BKGD, key) * options["scaling"]
    if attention_mask is not None:
        scores_BKGT = scores_BKGT.masked_fill(~attention_mask, float("-inf"))
    answer_BKGD = torch.matmul(scores_BKGT.softmax(-1).to(value.dtype), value)
    return answer_BKGD.reshape(query.shape[0], 1, -1, query.shape[3]), None


def _products(query_BKGD: torch.Tensor, key_BKTD: torch.Tensor) -> torch.Tensor:
    """Every query's product with every key, (B, K, G, T), in fp32: bf16 would put a score of 20 off by 0.06."""
    if not query_BKGD.is_cuda or query_BKGD.dtype == torch.float32:
        return torch.matmul(query_BKGD, key_BKTD.transpose(2, 3)).float()
    keys_NDT = key_BKTD.flatten(0, 1).transpose(1, 2)
    products_NGT = torch.bmm(query_BKGD.flatten(0, 1), keys_NDT, out_dtype=torch.float32)
    return products_NGT.unflatten(0, key_BKTD.shape[:2])


class RoomyLayer(DynamicLayer):
    """A layer of the KV cache with room for the tokens to come, so that a new one is written into its place."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = (key_states[:, :, :0], value_states[:, :, :0])
        used = self.get_seq_length()
        needed = used + key_states.shape[2]
        if needed > self.room[0].shape[2]:
            new = (key_states, value_states)
            self.room = tuple(_with_room(*pair, used, needed + ROOM) for pair in zip(self.room, new, strict=True))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, used:needed] = new
        self.show(needed)
        return self.keys, self.values

    def show(self, length: int) -> None:
        self.keys, self.values = (room[:, :, :length] for room in self.room)

    def keep(self, rows_R: torch.Tensor, first: int) -> None:
        """Keeps these rows, in this order, and drops the columns before `first`."""
        length = self.keys.shape[2]
        self.room = tuple(room[rows_R, :, first:] for room in self.room)
        self.show(length - first)

    def place(self, rows_R: torch.Tensor, layer: "RoomyLayer", index_R: torch.Tensor) -> None:
        """Puts rows `index_R` of another cache, right-aligned, in place of the rows `rows_R`."""
        width = layer.keys.shape[2]
        length = self.keys.shape[2]
        for room, new in zip(self.room, (layer.keys, layer.values), strict=True):
            room[rows_R, :, length - width : length] = new[index_R]


def _with_room(old: torch.Tensor, new: torch.Tensor, used: int, length: int) -> torch.Tensor:
    room = new.new_empty((*new.shape[:2], length, new.shape[3]))
    room[:, :, :used] = old[:, :, :used]
    return room
