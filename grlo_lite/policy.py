"""The policy: a 4-bit base model with a LoRA adapter, from Unsloth or from Transformers + PEFT + bitsandbytes."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.recipe import Lora

# Handed to every chat template, in training and evaluation alike: where the two differ, what was learnt does not show
TEMPLATE_OPTIONS = {"enable_thinking": False}

# For a base model without a chat template of its own, such as Llama's: plain text, whose end is the end of a document.
# Llama's own markers of turns are in its vocabulary, but its base models have never seen them.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Policy:
    """A base model wrapped in a trainable adapter, its tokenizer, and the backend that loaded it."""

    model: Any
    tokenizer: Any
    backend: str


def chosen_backend(backend: str, device: Any) -> str:
    """What `backend: auto` means here: Unsloth where it is installed and there is a GPU, else Transformers.

    Raises BadInput where Unsloth is asked for and not installed.
    """
    installed = importlib.util.find_spec("unsloth") is not None
    if backend == "unsloth" and not installed:
        raise BadInput(
            "backend=unsloth, but Unsloth is not installed; pip install 'grlo-lite[gpu]' or use backend=transformers"
        )
    if backend != "auto":
        return backend
    return "unsloth" if installed and device.type == "cuda" else "transformers"


def chosen_engine(engine: str, backend: str, quantization: str, device: Any) -> str:
    """Which rollout engine `rollout.engine` means here.

    `auto` is Transformers' `generate` on a CPU; on a GPU it is Unsloth's vLLM or its `generate`, or, through
    Transformers, `folded`, which itself goes on as `compact` where the dense copy does not fit. Raises BadInput where
    an engine cannot be had, with the reason.
    """
    with_vllm = importlib.util.find_spec("vllm") is not None
    if engine == "auto":
        if backend == "unsloth":
            return "fast_inference" if with_vllm and device.type == "cuda" else "generate"
        return "folded" if device.type == "cuda" else "generate"
    if engine in ("compact", "folded") and backend == "unsloth":
        raise BadInput(
            f"rollout.engine={engine} with backend=unsloth: Unsloth's own forward goes around the layers that this "
            "engine replaces; choose rollout.engine=generate or fast_inference, or backend=transformers"
        )
    if engine == "fast_inference" and backend == "transformers":
        why = "vLLM under TRL is refused"
        if quantization == "nf4":
            why = (
                "TRL would merge the adapter into vLLM's and the policy's 4-bit weights and back at every step, "
                "which corrupts them (after 20 steps they had drifted by 47 %)"
            )
        raise BadInput(
            f"rollout.engine=fast_inference with backend=transformers: {why}; choose backend=unsloth, whose vLLM "
            "takes the adapter as it is, or rollout.engine=folded"
        )
    if engine == "fast_inference" and not (with_vllm and device.type == "cuda"):
        lacks = "vLLM is not installed" if not with_vllm else "there is no GPU"
        raise BadInput(f"rollout.engine=fast_inference, but {lacks}; choose rollout.engine=generate")
    return engine


def import_unsloth(fast_inference: bool = False) -> None:
    """Imports Unsloth, which must come before trl, transformers and peft, and keeps it from reporting to its makers.

    With `fast_inference`, vLLM sleeps while the policy is updated, which Unsloth reads off the environment here.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    if fast_inference:
        os.environ.setdefault("UNSLOTH_VLLM_STANDBY", "1")
    import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports]


def load_tokenizer(path: str, revision: str) -> Any:
    """The base model's own tokenizer, with PLAIN_TEMPLATE where it has no chat template.

    Raises BadInput where there is no tokenizer, or one with neither a chat template nor a token that ends a text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"model.name={path!r} has no tokenizer to load: {' '.join(str(error).split())[:300]}") from None
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise BadInput(
                f"model.name={path!r} has neither a chat template nor an EOS token, so no answer could end; choose a "
                "base model that has one, such as Qwen/Qwen3-4B-Base"
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def formatted(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A conversation as the text that the policy goes on from, in its tokenizer's own chat template."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS)


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: the chat template's end of turn first, then the tokenizer's EOS.

    A base model's EOS is the end of a document (`<|endoftext|>` in Qwen3-*-Base) while its template ends a turn with
    another token (`<|im_end|>`); a trainer that knows only the first counts every answer as truncated. The end of
    turn is found by rendering an answer and taking the first special token behind it.
    """
    marker = "grlo"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}], tokenize=False
    )
    tail = tokenizer(text[text.rindex(marker) + len(marker) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [*[token for token in tail if token in special][:1], tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in ends if token is not None))


def load(
    path: str,
    revision: str,
    quantization: str,
    lora: Lora,
    backend: str,
    device: Any,
    max_tokens: int,
    seed: int,
    vllm_memory: float | None = None,
) -> Policy:
    """The base model in NF4 (or unquantized), frozen, with a fresh fp32 LoRA adapter on it that leaves its outputs
    unchanged.

    `max_tokens` is the longest prompt plus completion. Generation stops at the chat template's end of turn as well as
    at EOS. With `vllm_memory`, a fraction of the GPU, Unsloth's model generates through vLLM. Raises BadInput where the
    model cannot be loaded or is not a causal language model.
    """
    tokenizer = load_tokenizer(path, revision)
    _require_causal_lm(path, revision)
    if backend == "unsloth":
        model = _load_with_unsloth(path, revision, quantization, lora, device, max_tokens, seed, vllm_memory)
    else:
        model = load_with_transformers(path, revision, quantization, lora, device, seed)
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    trainable_in_fp32(model)
    return Policy(model, tokenizer, backend)


def load_trained(path: str, revision: str, quantization: str, adapter: Path, device: Any) -> Policy:
    """The base model with a trained adapter on it, in eval mode; `model.disable_adapter()` is the base.

    The tokenizer and with it the chat template are those saved with the adapter, the base's where there are none.
    Raises BadInput where the base or the adapter cannot be loaded.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from grlo_lite.quantization import from_pretrained

    saved = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(adapter), "main") if saved else load_tokenizer(path, revision)
    _require_causal_lm(path, revision)
    base = from_pretrained(AutoModelForCausalLM, path, revision, quantization, device)
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"the adapter {adapter} does not fit on {path}: {said}; name its own base model") from None
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Policy(model, tokenizer, "transformers")


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


def save_adapter(model: Any, tokenizer: Any, folder: Path, model_card: str) -> None:
    """Writes the adapter as PEFT safetensors with the tokenizer, the chat template, the stop tokens and a model card.

    The base model's own generation settings know no end of turn, so generation_config.json goes with the adapter.
    """
    from transformers import GenerationConfig

    model.save_pretrained(folder, selected_adapters=["default"], safe_serialization=True)
    tokenizer.save_pretrained(folder)
    stop_ids, pad_id = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    GenerationConfig(eos_token_id=stop_ids, pad_token_id=pad_id).save_pretrained(folder)
    (folder / "README.md").write_text(model_card, encoding="utf-8")


def _require_causal_lm(path: str, revision: str) -> None:
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


def _target_modules(lora: Lora) -> str | list[str]:
    return "all-linear" if lora.targets == "all-linear" else list(lora.targets)


def load_with_transformers(path: str, revision: str, quantization: str, lora: Lora, device: Any, seed: int) -> Any:
    """The base model under a fresh adapter, by Transformers, PEFT and bitsandbytes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    from grlo_lite.quantization import from_pretrained

    base = from_pretrained(AutoModelForCausalLM, path, revision, quantization, device)
    # Not PEFT's prepare_model_for_kbit_training: it makes the embeddings, the residual stream and the KV cache fp32
    base.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=_target_modules(lora), task_type="CAUSAL_LM")
    set_seed(seed)
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise BadInput(f"lora.targets={lora.targets} cannot be adapted in {path}: {error}") from None


def vllm_rank(rank: int) -> int:
    """The least maximum that vLLM can be given for adapters of this rank: it takes powers of two from 8."""
    return max(8, 1 << (rank - 1).bit_length())


def _load_with_unsloth(
    path: str,
    revision: str,
    quantization: str,
    lora: Lora,
    device: Any,
    max_tokens: int,
    seed: int,
    vllm_memory: float | None,
) -> Any:
    from transformers import set_seed
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    from grlo_lite.hardware import float_dtype
    from grlo_lite.quantization import keep_cpu_weights_unpacked

    fast = {"fast_inference": True, "max_lora_rank": vllm_rank(lora.rank), "gpu_memory_utilization": vllm_memory}
    base, _ = FastLanguageModel.from_pretrained(
        model_name=path,
        revision=revision,
        load_in_4bit=quantization == "nf4",
        max_seq_length=max_tokens,
        dtype=float_dtype(device),
        use_exact_model_name=True,
        trust_remote_code=False,
        **(fast if vllm_memory else {}),
    )
    keep_cpu_weights_unpacked(base)
    set_seed(seed)
    return FastLanguageModel.get_peft_model(
        base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0,
        target_modules=_target_modules(lora),
        use_gradient_checkpointing="unsloth" if device.type == "cuda" else False,
        random_state=seed,
    )
