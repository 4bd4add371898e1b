"""A policy's base as dense tensors under the names of its checkpoint: what another program can decode with."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grlo_lite.generation.linears import adapters_on, bias_of, dense_weight
from grlo_lite.generation.twin import base_of, linear_layers

SHARD_BYTES = 2**31  # of a file of weights


def dense_tensors(model: Any, dtype: torch.dtype, folded: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of the base with its name, one after the other, in `dtype`: what is quantized as the policy computes
    with it, and where `folded`, with the adapter in effect added, in fp32, and rounded once.

    Raises BadInput for an adapter that is not in the linear layers.
    """
    base = base_of(model)
    linears = {id(layer) for layer in linear_layers(base)}
    inside: set[int] = set()
    seen: set[int] = set()
    for name, module in base.named_modules():
        if id(module) in linears:
            inside |= {id(part) for part in module.modules()}
            weight = dense_weight(module, adapters_on(module) if folded else [])
            yield f"{name}.weight", weight.detach().to(dtype)
            if (bias := bias_of(module)) is not None:
                yield f"{name}.bias", bias.detach().to(dtype)
        elif id(module) not in inside:
            for parameter, tensor in module.named_parameters(recurse=False):
                if id(tensor) not in seen:  # an output layer that is tied to the embedding is saved once
                    seen.add(id(tensor))
                    yield f"{name}.{parameter}", tensor.detach().to(dtype)


def save_dense_base(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Writes the base, without its adapter, as a checkpoint of `dtype` that any loader of Transformers' can read."""
    from safetensors.torch import save_file

    config = copy.deepcopy(base_of(model).config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    config.save_pretrained(folder)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def write() -> None:
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, tensor in dense_tensors(model, dtype, folded=False):
        shard[name] = tensor.cpu().contiguous()
        if sum(one.nbytes for one in shard.values()) > SHARD_BYTES:
            write()
    if shard:
        write()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
