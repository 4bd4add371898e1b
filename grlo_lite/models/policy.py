"""The policy: a 4-bit base model with a LoRA adapter, from Unsloth or from Transformers + PEFT + bitsandbytes."""

from dataclasses import dataclass
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models.backends import Place
from grlo_lite.models.chat_template import load_tokenizer, stop_token_ids
from grlo_lite.models.names import base_path
from grlo_lite.models.unsloth import load_with_unsloth, target_modules
from grlo_lite.recipe.schema import Lora, Model


@dataclass(frozen=True)
class Policy:
    """A base model wrapped in a trainable adapter, its tokenizer, and the backend that loaded it."""

    model: Any
    tokenizer: Any
    backend: str


def load(base: Model, lora: Lora, place: Place, max_tokens: int, seed: int, vllm_memory: float | None = None) -> Policy:
    """The base model in NF4 (or unquantized), frozen, with a fresh fp32 LoRA adapter on it that leaves its outputs
    unchanged.

    `max_tokens` is the longest prompt plus completion. Generation stops at the chat template's end of turn as well as
    at EOS. With `vllm_memory`, a fraction of the GPU, Unsloth's model generates through vLLM. Raises BadInput where the
    model cannot be loaded or is not a causal language model.
    """
    path = base_path(base.name)
    tokenizer = load_tokenizer(path, base.revision)
    require_causal_lm(path, base.revision)
    if place.backend == "unsloth":
        require_pad_that_ends_nothing(path, tokenizer)
        model = load_with_unsloth(base, lora, place.device, max_tokens, seed, vllm_memory)
    else:
        model = load_with_transformers(base, lora, place.device, seed)
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    trainable_in_fp32(model)
    return Policy(model, tokenizer, place.backend)


def require_pad_that_ends_nothing(path: str, tokenizer: Any) -> None:
    """Raises BadInput where the only token to pad with ends an answer: Unsloth would never teach that."""
    if tokenizer.pad_token_id in stop_token_ids(tokenizer):
        raise BadInput(
            f"model.name={path!r} has no token to pad with but {tokenizer.pad_token}, which ends an answer, and "
            "Unsloth learns nothing at a token that is padding; use backend=transformers"
        )


def trainable_in_fp32(model: Any) -> None:
    """Casts the trainable parameters to fp32 in place.

    TRL casts the adapter of a quantized model to bf16, where most updates at a learning rate of 1e-5 round to
    nothing. To be called after a trainer has been built and after a checkpoint has been loaded.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def without_reference_adapter(model: Any) -> None:
    """Removes the frozen `ref` copy that TRL makes of a model that is already wrapped in an adapter.

    A fresh adapter changes nothing, so the reference policy is the base model with the adapter off, which TRL falls
    back on; the copy would only cost memory and go into every checkpoint.
    """
    if "ref" in model.peft_config:
        model.delete_adapter("ref")


def require_causal_lm(path: str, revision: str) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"model.name={path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    names = config.architectures or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not any("CausalLM" in name for name in names):
        raise BadInput(
            f"model.name={path!r} is not a causal language model but {', '.join(names) or config.model_type}; "
            "choose a base model such as Qwen/Qwen3-4B-Base"
        )


def load_with_transformers(model: Model, lora: Lora, device: Any, seed: int) -> Any:
    """The base model under a fresh adapter, by Transformers, PEFT and bitsandbytes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    from grlo_lite.models.quantization import from_pretrained

    path = base_path(model.name)
    base = from_pretrained(AutoModelForCausalLM, path, model.revision, model.quantization, device)
    # Not PEFT's prepare_model_for_kbit_training: it makes the embeddings, the residual stream and the KV cache fp32
    base.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=target_modules(lora), task_type="CAUSAL_LM")
    set_seed(seed)
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise BadInput(f"lora.targets={lora.targets} cannot be adapted in {path}: {error}") from None
