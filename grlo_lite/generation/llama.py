"""The forward pass of Llama, Qwen2 and Qwen3 as one function of tensors, for decoding alone.

What Transformers' own forward spends on masks, hooks and generality at every token is not spent here, queries, keys
and values are one matrix product, and so are the MLP's gate and its input. Nothing that patches Transformers' or
PEFT's classes, as Unsloth does, reaches it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding, rms_norm, scaled_dot_product_attention, silu

from grlo_lite.generation.kv_cache import RoomyLayer, head_dim
from grlo_lite.generation.linears import Linears, float_of

TYPES = ("llama", "qwen2", "qwen3")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # those that do not change with a text's length
RUN_BYTES = 1 << 18  # of keys and values that attention in one more run of rows must spare: what its calls cost


@dataclass(frozen=True)
class Layer:
    """One layer: norms as tensors, products as `Linears`; `of_heads` are Qwen3's norms of queries and of keys."""

    attention_norm: torch.Tensor
    qkv: Linears
    of_heads: tuple[torch.Tensor, torch.Tensor] | None
    output: Linears
    mlp_norm: torch.Tensor
    gate_and_up: Linears
    down: Linears


class Run(NamedTuple):
    """Rows side by side that attend together: the first column that they read, and which from there on are hidden to
    each row, shape (R, 1, 1, columns).
    """

    rows: slice
    first: int
    hidden: torch.Tensor


@dataclass(frozen=True)
class Llama:
    """A model to decode with: (B, T) tokens in, the logits behind each row's last token out, shape (B, V)."""

    embedding: torch.Tensor
    layers: list[Layer]
    norm: torch.Tensor
    head: Linears
    frequencies_D: torch.Tensor  # of rotary embeddings, a half of the head's size
    rotation_scale: float
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    def __call__(
        self,
        ids_BT: torch.Tensor,
        mask_BW: torch.Tensor,
        position_BT: torch.Tensor,
        cache: Sequence[RoomyLayer],
        share_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One new token a row behind what the cache holds, or whole prompts into an empty cache.

        The mask, shape (B, W), covers the columns of the cache and the new ones; `share_B` is how much of the adapter
        each row gets, where it goes by rows.
        """
        share = None if share_B is None else share_B[:, None, None]
        x_BTH = embedding(ids_BT, self.embedding).to(self.norm.dtype)
        angles_BTD = position_BT[..., None].float() * self.frequencies_D
        cos, sin = angles_BTD.cos() * self.rotation_scale, angles_BTD.sin() * self.rotation_scale
        cos = torch.cat([cos, cos], -1).to(x_BTH.dtype)[:, :, None]
        sin = torch.cat([-sin, sin], -1).to(x_BTH.dtype)[:, :, None]
        column_bytes = 2 * self.kv_heads * self.head_dim * x_BTH.itemsize
        seen = _runs(mask_BW, column_bytes) if ids_BT.shape[1] == 1 else _visible(mask_BW)
        for layer, keys_and_values in zip(self.layers, cache, strict=True):
            qkv = layer.qkv(_normed(x_BTH, layer.attention_norm, self.eps), share)
            x_BTH = x_BTH + layer.output(self._attended(layer, qkv, (cos, sin), seen, keys_and_values), share)
            gate, up = layer.gate_and_up(_normed(x_BTH, layer.mlp_norm, self.eps), share).chunk(2, -1)
            x_BTH = x_BTH + layer.down(silu(gate).mul_(up), share)
        last_BH = _normed(x_BTH[:, -1], self.norm, self.eps)
        return self.head(last_BH, None if share_B is None else share_B[:, None])

    def _attended(
        self,
        layer: Layer,
        qkv_BTN: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        seen: torch.Tensor | list[Run],
        cache: RoomyLayer,
    ) -> torch.Tensor:
        """What attention reads, shape (B, T, heads · head size): of prompts, or in runs of a new token a row."""
        rows, tokens = qkv_BTN.shape[:2]
        split = qkv_BTN.view(rows, tokens, -1, self.head_dim)
        turning, value = split.split([self.heads + self.kv_heads, self.kv_heads], 2)
        if layer.of_heads is not None:
            query, key = turning.split([self.heads, self.kv_heads], 2)
            of_queries, of_keys = layer.of_heads
            turning = torch.cat([_normed(query, of_queries, self.eps), _normed(key, of_keys, self.eps)], 2)
        cos, sin = rotation
        turned = torch.addcmul(turning * cos, turning.roll(self.head_dim // 2, -1), sin)
        query, key = turned.split([self.heads, self.kv_heads], 2)
        keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2))
        if isinstance(seen, list):
            scale = self.head_dim**-0.5
            parts = [
                grouped_attention(
                    query[r.rows, 0], keys[r.rows, :, r.first :], values[r.rows, :, r.first :], r.hidden, scale
                )
                for r in seen
            ]
            read = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            read = scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=seen, enable_gqa=True
            ).transpose(1, 2)
        return read.reshape(rows, tokens, -1)


def grouped_attention(
    query_BHD: torch.Tensor, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor, hidden_BT: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of one new token a row, without copies of the keys for each query head; shape (B, K, G, D).

    `hidden_BT`, shape (B, 1, 1, T), is true where a column is not to be read.
    """
    rows, kv_heads = key_BKTD.shape[:2]
    query_BKGD = query_BHD.reshape(rows, kv_heads, -1, query_BHD.shape[-1])
    scores_BKGT = (_products(query_BKGD, key_BKTD) * scale).masked_fill_(hidden_BT, float("-inf"))
    return torch.matmul(scores_BKGT.softmax(-1).to(value_BKTD.dtype), value_BKTD)


def _products(query_BKGD: torch.Tensor, key_BKTD: torch.Tensor) -> torch.Tensor:
    """Every query's product with every key, (B, K, G, T), in fp32: bf16 would put a score of 20 off by 0.06."""
    if not query_BKGD.is_cuda or query_BKGD.dtype == torch.float32:
        return torch.matmul(query_BKGD, key_BKTD.transpose(2, 3)).float()
    keys_NDT = key_BKTD.flatten(0, 1).transpose(1, 2)
    products_NGT = torch.bmm(query_BKGD.flatten(0, 1), keys_NDT, out_dtype=torch.float32)
    return products_NGT.unflatten(0, key_BKTD.shape[:2])


def _visible(mask_BW: torch.Tensor) -> torch.Tensor:
    """For whole prompts, which columns are visible to which: those up to itself that are no padding, and always itself,
    for a row of padding that reads nothing would become NaN.
    """
    tokens = mask_BW.shape[1]
    before_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=mask_BW.device).tril()
    itself_TT = torch.eye(tokens, dtype=torch.bool, device=mask_BW.device)
    return before_TT & mask_BW[:, None, None] | itself_TT


def _runs(mask_BW: torch.Tensor, column_bytes: int) -> list[Run]:
    """The rows in runs, for on a CPU attention spends as long on the padding of short rows as on tokens. A run ends
    where the padding that it reads would exceed `RUN_BYTES`. On a GPU it is one: asking where rows begin is a wait.
    """
    asks = mask_BW.device.type == "cpu" and mask_BW.numel() * column_bytes > RUN_BYTES
    firsts = mask_BW.int().argmax(1).tolist() if asks else [0] * len(mask_BW)
    starts, first, padding = [0], firsts[0], 0
    for row in range(1, len(firsts)):
        before, first = first, min(first, firsts[row])
        padding += (row - starts[-1]) * (before - first) + firsts[row] - first
        if padding * column_bytes > RUN_BYTES:
            starts.append(row)
            first, padding = firsts[row], 0
    runs = []
    for start, end in itertools.pairwise([*starts, len(firsts)]):
        first = min(firsts[start:end])
        runs.append(Run(slice(start, end), first, ~mask_BW[start:end, None, None, first:]))
    return runs


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm as Transformers rounds it: normalized in fp32, scaled in the model's dtype."""
    if x.dtype == torch.float32:
        return rms_norm(x, weight.shape, weight, eps)
    return rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight


def is_one(config: Any) -> bool:
    """Whether a model of this configuration is what this forward computes."""
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    known = config.model_type in TYPES and config.hidden_act == "silu"
    return known and not sliding and rotation in FIXED_ROTATIONS


def bare(layer: Any) -> Any:
    """An embedding or output layer without PEFT's wrapper, whose trained rows stand in its own weight (`twin`)."""
    adapter = getattr(layer, "token_adapter", None)
    return layer if adapter is None else adapter.get_base_layer()


def llama(model: Any, fold: bool, beside: str | None = None) -> Llama:
    """The decoder of a causal language model of this shape, PEFT's wrapper off; products as `Linears` has them."""
    config, core = model.config, model.model
    embedding, head = bare(core.embed_tokens), bare(model.lm_head)
    dtype = float_of(core.layers[0].self_attn.q_proj)
    frequencies, scale = _rotation(config, embedding.weight.device)

    def product(*layers: Any) -> Linears:
        return Linears(layers, dtype, fold, beside)

    layers = [
        Layer(
            layer.input_layernorm.weight.detach().to(dtype),
            product(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            (layer.self_attn.q_norm.weight.detach().to(dtype), layer.self_attn.k_norm.weight.detach().to(dtype))
            if config.model_type == "qwen3"
            else None,
            product(layer.self_attn.o_proj),
            layer.post_attention_layernorm.weight.detach().to(dtype),
            product(layer.mlp.gate_proj, layer.mlp.up_proj),
            product(layer.mlp.down_proj),
        )
        for layer in core.layers
    ]
    return Llama(
        embedding.weight.detach(),
        layers,
        core.norm.weight.detach().to(dtype),
        product(head),
        frequencies,
        scale,
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim(config),
        config.rms_norm_eps,
    )


def _rotation(config: Any, device: torch.device) -> tuple[torch.Tensor, float]:
    """The rotary embeddings' frequencies, shape (D / 2,), and what their sines and cosines are scaled by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if config.rope_parameters["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, device)
    size = head_dim(config)
    exponents = torch.arange(0, size, 2, dtype=torch.float) / size
    return (1.0 / config.rope_parameters["rope_theta"] ** exponents).to(device), 1.0
