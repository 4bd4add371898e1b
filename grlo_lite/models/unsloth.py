"""The base model under a fresh adapter, by Unsloth."""

from typing import Any

from grlo_lite.recipe.schema import Lora


def target_modules(lora: Lora) -> str | list[str]:
    return "all-linear" if lora.targets == "all-linear" else list(lora.targets)


def vllm_rank(rank: int) -> int:
    """The least maximum that vLLM can be given for adapters of this rank: it takes powers of two from 8."""
    return max(8, 1 << (rank - 1).bit_length())


def load_with_unsloth(
    path: str,
    revision: str,
    quantization: str,
    lora: Lora,
    device: Any,
    max_tokens: int,
    seed: int,
    vllm_memory: float | None,
    cpu_dtype: str,
) -> Any:
    from transformers import set_seed
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    from grlo_lite.machine.device import float_dtype
    from grlo_lite.models.quantization import keep_cpu_weights_unpacked

    fast = {"fast_inference": True, "max_lora_rank": vllm_rank(lora.rank), "gpu_memory_utilization": vllm_memory}
    base, _ = FastLanguageModel.from_pretrained(
        model_name=path,
        revision=revision,
        load_in_4bit=quantization == "nf4",
        max_seq_length=max_tokens,
        dtype=float_dtype(device, cpu_dtype),
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
        target_modules=target_modules(lora),
        use_gradient_checkpointing="unsloth" if device.type == "cuda" else False,
        random_state=seed,
    )
