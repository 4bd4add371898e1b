"""The policy: a 4-bit base model with a LoRA adapter, from Unsloth or from Transformers + PEFT + bitsandbytes."""

from dataclasses import dataclass
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.machine.device import settle_threads
from grlo_lite.models.backends import Place
from grlo_lite.models.chat_template import fetched, load_tokenizer, stop_token_ids
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
    model cannot be loaded or is not a causal language model, and where `lora.train_stop_tokens` finds none.
    """
    path = base_path(base.name)
    tokenizer = load_tokenizer(path, base.revision, base.eos_token)
    require_causal_lm(path, base.revision)
    stop_ids = stop_token_ids(tokenizer)
    if lora.train_stop_tokens and not stop_ids:
        raise BadInput(
            f"lora.train_stop_tokens=true, but no token is known that ends an answer of {path}: its template ends a "
            "turn by no token of its own and its tokenizer has no EOS; name one as model.eos_token"
        )
    if place.backend == "unsloth":
        require_pad_that_ends_nothing(path, tokenizer)
        model = load_with_unsloth(base, lora, place, max_tokens, seed, vllm_memory)
    else:
        model = load_with_transformers(base, lora, place, seed, stop_ids)
    trainable_in_fp32(model)
    return settled(Policy(model, tokenizer, place.backend))


def settled(policy: Policy) -> Policy:
    """The policy, whose generation stops at the template's end of turn as well as at EOS, with threads to its size."""
    config = policy.model.generation_config
    config.eos_token_id, config.pad_token_id = stop_token_ids(policy.tokenizer), policy.tokenizer.pad_token_id
    settle_threads(policy.model)
    return policy


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

    config = fetched(AutoConfig, path, revision, f"model.name={path!r} cannot be loaded")
    names = config.architectures or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not any("CausalLM" in name for name in names):
        raise BadInput(
            f"model.name={path!r} is not a causal language model but {', '.join(names) or config.model_type}; "
            "choose a base model such as Qwen/Qwen3-4B-Base"
        )


def token_rows(base: Any, ids: list[int]) -> dict[str, list[int]]:
    """These tokens' rows of the embedding and, where it has weights of its own, of the output layer, by layer.

    Where the two are tied, PEFT trains the one row for both. Raises BadInput for an output layer with a bias, which
    PEFT would leave out of its products.
    """
    wanted = [base.get_input_embeddings()]
    head = base.get_output_embeddings()
    if head.weight is not wanted[0].weight:
        wanted.append(head)
        if head.bias is not None:
            raise BadInput("lora.train_stop_tokens=true: the output layer of this base model has a bias; leave it out")
    return {name: ids for name, module in base.named_modules() for layer in wanted if module is layer}


def load_with_transformers(model: Model, lora: Lora, place: Place, seed: int, stop_ids: list[int]) -> Any:
    """The base model under a fresh adapter, by Transformers, PEFT and bitsandbytes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    from grlo_lite.models.quantization import from_pretrained

    path = base_path(model.name)
    base = from_pretrained(
        AutoModelForCausalLM, path, model.revision, model.quantization, place.device, place.cpu_dtype
    )
    # Not PEFT's prepare_model_for_kbit_training: it makes the embeddings, the residual stream and the KV cache fp32
    base.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=target_modules(lora),
        trainable_token_indices=token_rows(base, stop_ids) if lora.train_stop_tokens else None,
        task_type="CAUSAL_LM",
    )
    set_seed(seed)
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise BadInput(f"lora.targets={lora.targets} cannot be adapted in {path}: {error}") from None
