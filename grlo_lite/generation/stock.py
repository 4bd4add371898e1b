"""A stock Transformers model as the decoder, for architectures that `llama` does not compute."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from grlo_lite.errors import BadInput
from grlo_lite.generation.kv_cache import RoomyLayer
from grlo_lite.generation.linears import Linears

KINDS = ("full_attention", "sliding_attention")  # of layers whose memory is a cache of keys and values


class Multiplied(nn.Module):
    """A linear layer of the stock model, whose product is made from the policy's layer."""

    def __init__(self, linears: Linears, shares: dict[str, Any]):
        super().__init__()
        self.linears, self.shares = linears, shares

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share_B = self.shares["rows"]
        return self.linears(x, None if share_B is None else share_B.view(-1, *[1] * (x.ndim - 1)))


class Stock:
    """A model to decode with, called as `Llama` is.

    It is made on the meta device, by Transformers' own class for the policy's configuration; embeddings and norms are
    the policy's own tensors, and its linear layers are products of the policy's, laid out for `few_rows` or for texts.
    """

    def __init__(self, model: Any, fold: bool, beside: str | None = None, few_rows: bool = True):
        from transformers import AutoModelForCausalLM
        from transformers.cache_utils import Cache

        config = model.config.__class__.from_dict(
            {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        )
        require_keys_and_values(config)
        self.made_cache = Cache
        self.shares: dict[str, Any] = {"rows": None}
        with torch.device("meta"), unpatched(sys.modules[type(model).__module__]):
            self.model = AutoModelForCausalLM.from_config(config, attn_implementation=model.config._attn_implementation)
        device, dtype = model.get_input_embeddings().weight.device, model.get_input_embeddings().weight.dtype
        _fill_buffers(self.model, device)
        for name, module in list(self.model.named_modules()):
            of_policy = model.get_submodule(name)
            if isinstance(module, nn.Linear):
                parent, _, last = name.rpartition(".")
                linears = Linears([of_policy], dtype, fold, beside, few_rows)
                setattr(self.model.get_submodule(parent), last, Multiplied(linears, self.shares))
            else:
                module._parameters.update({key: of_policy.get_parameter(key) for key in module._parameters})
        left = [name for name, p in self.model.named_parameters() if p.is_meta]
        assert not left, f"the decoder has no tensor for {left[:3]}"
        self.model.eval()

    def __call__(
        self,
        ids_BT: torch.Tensor,
        mask_BW: torch.Tensor,
        position_BT: torch.Tensor,
        cache: Sequence[RoomyLayer],
        share_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The logits behind each row's last token, shape (B, V)."""
        self.shares["rows"] = share_B
        return self.model(
            input_ids=ids_BT,
            attention_mask=mask_BW.long(),
            position_ids=position_BT,
            past_key_values=self.made_cache(layers=list(cache)),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


@contextmanager
def unpatched(modeling: Any) -> Iterator[None]:
    """Inside, a modeling file of Transformers has all its own classes, also those in whose place Unsloth has put others
    since it loaded a policy, as the rotary embedding's, which keeps its tables on CUDA devices. Of the methods that it
    has changed the originals are called by themselves wherever the model is not Unsloth's (`_gated_method`).
    """
    own, _ = vars(modeling).get("_unsloth_pre_patch_originals", ({}, {}))
    others = {name: vars(modeling)[name] for name in own}
    vars(modeling).update(own)
    try:
        yield
    finally:
        vars(modeling).update(others)


def require_keys_and_values(config: Any) -> None:
    """Raises BadInput for a model that remembers by anything but keys and values, one of each a token."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (strange := kinds - set(KINDS)) or getattr(config, "is_encoder_decoder", False):
        raise BadInput(
            f"models of type {config.model_type} remember by {', '.join(sorted(strange)) or 'an encoder'}, which the "
            "kit's decoder cannot; choose a model with attention alone, such as Qwen3 or Llama"
        )


def _fill_buffers(stock: Any, device: torch.device) -> None:
    """Computes what the meta device left empty: the frequencies of rotary embeddings and the like."""
    with torch.random.fork_rng([]):
        for module in stock.modules():
            if any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
                for key, buffer in module._buffers.items():
                    module._buffers[key] = torch.zeros_like(buffer, device=device)
                stock._init_weights(module)
