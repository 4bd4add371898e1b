"""A layer of the decoder's KV cache, written in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

ROOM = 256  # columns by which the KV cache grows


def kv_bytes(config: Any) -> int:
    """Bytes of one token's keys and values in one layer, in 16 bits."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * 2 * heads * head_dim(config)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class RoomyLayer(DynamicLayer):
    """A layer of the KV cache with room for the tokens to come, so that a new one is written into its place.

    Transformers' own layer copies all keys and values at every token.
    """

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
        length = self.keys.shape[2] - first
        kept = [tensor[:, :, first:].index_select(0, rows_R) for tensor in (self.keys, self.values)]
        self.room = tuple(_with_room(tensor, tensor, length, length + ROOM) for tensor in kept)
        self.show(length)

    def place(self, rows_R: torch.Tensor, layer: "RoomyLayer", index_R: torch.Tensor) -> None:
        """Puts rows `index_R` of another cache, right-aligned, in place of the rows `rows_R`."""
        width = layer.keys.shape[2]
        length = self.keys.shape[2]
        for room, new in zip(self.room, (layer.keys, layer.values), strict=True):
            room[rows_R, :, length - width : length] = new[index_R]


def one_below_another(layers: Sequence[RoomyLayer], width: int) -> RoomyLayer:
    """One layer of the rows of several, right-aligned in `width` columns; what a narrower one lacks is zero."""

    def rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([pad(tensor, (0, 0, width - tensor.shape[2], 0)) for tensor in tensors])

    joined = RoomyLayer()
    joined.update(rows([layer.keys for layer in layers]), rows([layer.values for layer in layers]))
    return joined


def _with_room(old: torch.Tensor, new: torch.Tensor, used: int, length: int) -> torch.Tensor:
    room = new.new_empty((*new.shape[:2], length, new.shape[3]))
    room[:, :, :used] = old[:, :, :used]
    return room
