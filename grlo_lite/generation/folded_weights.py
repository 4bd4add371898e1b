"""A dense copy of a policy's weights, adapter included, for the length of a rollout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Inside, every adapted layer multiplies by one dense matrix: its dequantized weight plus `scaling · B A`.

    The sum is made in fp32 and rounded once, to the dtype the layer computes in. The matrices are freed on leaving.
    Where the adapter is disabled, nothing is folded in. Rows of the embedding that the adapter trains are written into
    it for as long, where PEFT would copy the whole of it at every token.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    rows = ExitStack()
    try:
        for layer in (module for module in model.modules() if isinstance(module, TrainableTokensLayer)):
            rows.enter_context(rows_in_place(layer))
        for layer in layers:
            layer.forward = partial(linear, weight=folded_weight(layer), bias=layer.get_base_layer().bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        rows.close()


@contextmanager
def rows_in_place(layer: Any) -> Iterator[None]:
    """Inside, an embedding or output layer has the trained rows in its own weight, and multiplies by that alone."""
    base = layer.get_base_layer()
    weight, before = base.weight.data, []
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            index = torch.tensor(layer.token_indices[name], device=weight.device)
            before.append((index, weight[index]))
            weight[index] = layer.trainable_tokens_delta[name].data.to(weight.dtype)
    layer.forward = base.forward
    try:
        yield
    finally:
        del layer.forward
        for index, saved in reversed(before):
            weight[index] = saved


def folded_weight(layer: Any) -> torch.Tensor:
    """The dense matrix, shape (out, in), that does what a LoRA layer over a 4-bit or dense one does."""
    from bitsandbytes.functional import dequantize_4bit

    base = layer.get_base_layer()
    weight, quantized = base.weight, hasattr(base.weight, "quant_state")
    with torch.no_grad():
        dense = dequantize_4bit(weight.data, weight.quant_state) if quantized else weight.data
        dtype = base.compute_dtype if quantized and base.compute_dtype else dense.dtype
        if layer.disable_adapters:
            return dense.to(dtype)
        dense = dense.float()
        for name in layer.active_adapters:
            dense = torch.addmm(
                dense, layer.lora_B[name].weight.float(), layer.lora_A[name].weight.float(), alpha=layer.scaling[name]
            )
        return dense.to(dtype)


def folded_bytes(model: Any) -> int:
    """What `folded` takes while it is in effect."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return sum(layer.in_features * layer.out_features for layer in layers) * model.dtype.itemsize
