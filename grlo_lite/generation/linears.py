"""A policy's linear layers, adapter included, as products that a decoder makes: dense, or dequantized as they go."""

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

PACKED_FROM = 1 << 18  # numbers in a matrix; smaller ones stay in the cache however they lie


class Linears:
    """The products of one input with the matrices of several linear layers, side by side: (…, in) → (…, Σ out).

    With `fold` the matrices are one dense copy, adapter included; without, each layer dequantizes its own at every
    product, and the adapter's two matrices follow. With `beside`, the name of an adapter, only that one is added, to
    the rows and by the factors that a product is given: base and tuned in one batch. The copy is laid out for products
    of `few_rows`, a token each, or lies as Transformers has it, by which whole texts are rounded alike.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        dtype: torch.dtype,
        fold: bool,
        beside: str | None = None,
        few_rows: bool = True,
    ):
        self.layers: list[Any] = []
        self.weight = self.bias = self.low = None
        adapters = [_names(layer, beside) for layer in layers]
        if fold:
            matrices = [
                dense_weight(layer, names if beside is None else []).to(dtype)
                for layer, names in zip(layers, adapters, strict=True)
            ]
            self.weight = _laid_out(matrices, layers, few_rows)
            biases = [bias_of(layer) for layer in layers]
            if any(bias is not None for bias in biases):
                zeros = [torch.zeros(len(m), dtype=dtype, device=m.device) for m in matrices]
                self.bias = torch.cat(
                    [zero if b is None else b.detach().to(dtype) for b, zero in zip(biases, zeros, strict=True)]
                )
        else:
            self.layers = [layer if odd(layer) else _base(layer) for layer in layers]
        if beside is not None or not fold:
            plain = [[] if odd(layer) else names for layer, names in zip(layers, adapters, strict=True)]
            self.low = _factors(layers, plain, dtype)

    def __call__(self, x: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
        """`share`, shape (rows, 1, …), is how much of the adapter each row of `x` gets."""
        if self.weight is not None:
            y = product(x, self.weight, self.bias)
        elif len(self.layers) == 1:
            y = self.layers[0](x)
        else:
            y = torch.cat([layer(x) for layer in self.layers], -1)
        if self.low is None:
            return y
        down, up = self.low
        between = linear(x, down)
        return y + linear(between if share is None else between * share, up)


def dense_weight(layer: Any, adapters: Sequence[str]) -> torch.Tensor:
    """The dense matrix, shape (out, in), that does what a layer with these adapters does: its dequantized weight plus
    `scaling · B A`, summed in fp32 and rounded once. For a kind of adapter other than plain LoRA it is read off the
    layer itself, whatever `adapters` says.
    """
    base = _base(layer)
    with torch.no_grad():
        if odd(layer):
            at_zero = layer(torch.zeros(1, base.in_features, device=base.weight.device, dtype=float_of(base)))
            return (layer(torch.eye(base.in_features, device=base.weight.device, dtype=float_of(base))) - at_zero).T
        weight, quantized = base.weight, hasattr(base.weight, "quant_state")
        if quantized:
            from bitsandbytes.functional import dequantize_4bit

            dense = dequantize_4bit(weight.data, weight.quant_state)
        else:
            dense = weight.detach()
        if not adapters:
            return dense.to(float_of(base))
        dense = dense.float()
        for name in adapters:
            up, down = layer.lora_B[name].weight.float(), layer.lora_A[name].weight.float()
            dense = torch.addmm(dense, up, down, alpha=layer.scaling[name])
        return dense.to(float_of(base))


def _laid_out(matrices: list[torch.Tensor], layers: Sequence[Any], few_rows: bool) -> torch.Tensor:
    """One matrix, (Σ out, in): a layer's own tensor where it is used as it is, else a copy. For few rows on a CPU it is
    in oneDNN's layout where `laid_anew` says so, else a copy has its columns side by side, by which MKL is faster.
    """
    own = len(layers) == 1 and matrices[0].data_ptr() == _base(layers[0]).weight.data_ptr()
    joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    if few_rows and laid_anew(joined):
        return in_onednns_layout(joined)
    if own or not few_rows or joined.device.type != "cpu":
        return joined
    return joined.t().contiguous().t()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x` times the transposed weight, in whichever layout it lies."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


def laid_anew(matrix: torch.Tensor) -> bool:
    """Whether a decoder multiplies by a copy of this matrix in oneDNN's layout: on an x86 CPU by a large one, few rows
    up to twice as fast as MKL, the more so on AMD's.
    """
    return matrix.numel() >= PACKED_FROM and packs(matrix)


def in_onednns_layout(matrix: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())


def packs(matrix: torch.Tensor) -> bool:
    """Whether oneDNN multiplies by such a matrix here, by the operators that torch.compile's CPU backend uses."""
    if matrix.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if matrix.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return matrix.dtype == torch.float32


def bias_of(layer: Any) -> torch.Tensor | None:
    base = _base(layer)
    if not odd(layer):
        return base.bias
    with torch.no_grad():
        return layer(torch.zeros(1, base.in_features, device=base.weight.device, dtype=float_of(base)))[0]


def odd(layer: Any) -> bool:
    """Whether a layer carries an adapter in effect that is not plain LoRA."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(layer, BaseTunerLayer) or layer.disable_adapters or layer.merged:
        return False
    if not isinstance(layer, LoraLayer):
        return True
    return any(name in layer.lora_variant or layer.lora_bias.get(name) for name in _names(layer, None))


def dense_bytes(layers: Sequence[Any], width: int) -> int:
    """What a dense copy of these layers takes at `width` bytes a number."""
    return sum(_base(layer).in_features * _base(layer).out_features for layer in layers) * width


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def float_of(layer: Any) -> torch.dtype:
    """What a linear layer, adapted or not, computes in."""
    base = _base(layer)
    if hasattr(base.weight, "quant_state"):
        return base.compute_dtype or base.weight.quant_state.dtype
    return base.weight.dtype


def adapters_on(layer: Any) -> list[str]:
    """The adapters in effect on a layer."""
    return _names(layer, None)


def _names(layer: Any, beside: str | None) -> list[str]:
    """The adapters on a layer: the one named, or those in effect."""
    if not hasattr(layer, "lora_A"):
        return []
    if beside is not None:
        return [beside] if beside in layer.lora_A else []
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _factors(
    layers: Sequence[Any], adapters: list[list[str]], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The adapters' two matrices, (Σ rank, in) and (Σ out, Σ rank), each layer's block in its own place."""
    pairs = [
        (at, layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name])
        for at, (layer, names) in enumerate(zip(layers, adapters, strict=True))
        for name in names
    ]
    if not pairs:
        return None
    with torch.no_grad():
        down = torch.cat([a for _, a, _ in pairs]).to(dtype)
        starts = [0]
        for layer in layers:
            starts.append(starts[-1] + _base(layer).out_features)
        up, column = down.new_zeros(starts[-1], len(down)), 0
        for at, a, b in pairs:
            up[starts[at] : starts[at + 1], column : column + len(a)] = b
            column += len(a)
    return down, up
