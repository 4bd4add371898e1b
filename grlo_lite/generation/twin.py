"""The decoding twin: a second body of a policy, made of its own tensors, that nothing which wraps the policy reaches.

The policy's forward belongs to the update: PEFT's layers, Unsloth's kernels, gradient checkpointing and autocast are
in it. The twin computes the same function for decoding alone, and `twin_check` holds the two against each other.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from grlo_lite.errors import BadInput
from grlo_lite.generation import llama, stock
from grlo_lite.generation.linears import dense_bytes, float_of, laid_anew
from grlo_lite.machine.device import free_bytes

PLAIN = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")  # adapters that live in the layers that they adapt


@dataclass(frozen=True)
class Twin:
    """What decodes: the forward of `llama.Llama` or `stock.Stock`, and what the loop has to know of the model."""

    forward: Any
    layers: int


@contextmanager
def twin(model: Any, fold: bool | None = None, beside: str | None = None) -> Iterator[Twin]:
    """The twin of a policy as it is now, with the adapters that are in effect; what it holds is freed on leaving.

    `fold` makes a dense copy of the linear layers, adapter included, `None` where it finds room. `beside` names one
    adapter to be given to rows, by the factors that `decoding.Prompts` holds. Raises BadInput for a model that the
    kit cannot decode with.
    """
    base = base_of(model)
    folding = copy_finds_room(model) if fold is None else fold
    with ExitStack() as rows:
        for layer in token_layers(base):
            if beside is not None:
                raise BadInput("an adapter with rows of the embedding cannot answer beside its base in one batch")
            if not llama.is_one(base.config):
                raise BadInput(
                    f"lora.train_stop_tokens=true: the kit cannot decode a {base.config.model_type} with it yet"
                )
            rows.enter_context(trained_rows_in_place(layer))
        with torch.no_grad():
            made = (llama.llama if llama.is_one(base.config) else stock.Stock)(base, folding, beside)
        held = [Twin(made, base.config.num_hidden_layers)]
        del made
        try:
            yield held[0]
        finally:
            held.clear()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # the copy is of other sizes than what comes next


def base_of(model: Any) -> Any:
    """The causal language model without PEFT's wrapper, its adapted layers as they are.

    Raises BadInput for an adapter that is not in the linear layers.
    """
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        elsewhere = getattr(config, "modules_to_save", None)
        if kind not in PLAIN or elsewhere or getattr(config, "target_parameters", None):
            what = f"of the kind {kind}" if kind not in PLAIN else "outside the linear layers"
            raise BadInput(f"an adapter {what} cannot be decoded with; merge it into its base, or train plain LoRA")
    return model.get_base_model() if hasattr(model, "peft_config") else model


def token_layers(base: Any) -> list[Any]:
    """The embedding and output layers of which an adapter trains rows (`lora.train_stop_tokens`)."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return [module for module in base.modules() if isinstance(module, TrainableTokensLayer)]


@contextmanager
def trained_rows_in_place(layer: Any) -> Iterator[None]:
    """Inside, an embedding or output layer has the trained rows in its own weight, where PEFT would copy the whole of
    it at every token; without them where the adapter is disabled.
    """
    weight, before = layer.get_base_layer().weight.data, []
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            index = torch.tensor(layer.token_indices[name], device=weight.device)
            before.append((index, weight[index]))
            weight[index] = layer.trainable_tokens_delta[name].data.to(weight.dtype)
    try:
        yield
    finally:
        for index, saved in reversed(before):
            weight[index] = saved


def linear_layers(model: Any) -> list[Any]:
    """The layers that a dense copy is made of: all linear ones but the head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    found: list[Any] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            inside |= {id(part) for part in layer.modules()} - {id(module)}
            if isinstance(layer.get_base_layer(), torch.nn.Linear):
                found.append(module)
        elif isinstance(module, torch.nn.Linear) and id(module) not in inside and module is not head:
            found.append(module)
    return found


def copy_bytes(model: Any) -> int:
    """What the dense copy takes while there is one; the head's weight is in it where it is laid anew."""
    layers = linear_layers(model)
    width = float_of(layers[0]).itemsize
    head = llama.bare(model.get_output_embeddings()).weight
    return dense_bytes(layers, width) + width * head.numel() * laid_anew(head)


def copy_finds_room(model: Any) -> bool:
    """Whether the dense copy takes at most half of the free memory."""
    free = free_bytes(model.device) if model.device.type == "cuda" else free_host_bytes()
    return copy_bytes(model) <= free // 2


def free_host_bytes() -> int:
    """Of main memory that a process may still take without pushing another out."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (FileNotFoundError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
