"""The base model under a fresh adapter, by Unsloth."""

from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.generation.engine_table import vllm_rank
from grlo_lite.models.backends import Place
from grlo_lite.models.names import base_path
from grlo_lite.recipe.schema import Lora, Model


def target_modules(lora: Lora) -> str | list[str]:
    return "all-linear" if lora.targets == "all-linear" else list(lora.targets)


def load_with_unsloth(
    model: Model, lora: Lora, place: Place, max_tokens: int, seed: int, vllm_memory: float | None
) -> Any:
    """The base model under a fresh adapter; with `vllm_memory`, a fraction of the GPU, it generates through vLLM.

    Raises BadInput, in one line, where Unsloth cannot load it.
    """
    from transformers import set_seed
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    from grlo_lite.machine.device import float_dtype, is_out_of_memory
    from grlo_lite.models.quantization import keep_cpu_weights_unpacked

    fast = {"fast_inference": True, "max_lora_rank": vllm_rank(lora.rank), "gpu_memory_utilization": vllm_memory}
    path = base_path(model.name)
    try:
        base, _ = FastLanguageModel.from_pretrained(
            model_name=snapshot(path, model.revision) if vllm_memory else path,
            revision=model.revision,
            load_in_4bit=model.quantization == "nf4",
            max_seq_length=max_tokens,
            dtype=float_dtype(place.device, place.cpu_dtype),
            use_exact_model_name=True,
            trust_remote_code=False,
            **(fast if vllm_memory else {}),
        )
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        said = " ".join(str(error).split())[:300]
        if is_out_of_memory(error):
            raise DoesNotFit(f"model.name={path!r} does not fit into this memory: {said}") from error
        raise BadInput(f"model.name={path!r} cannot be loaded by Unsloth: {said}; use backend=transformers") from error
    keep_cpu_weights_unpacked(base)
    set_seed(seed)
    adapted = FastLanguageModel.get_peft_model(
        base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0,
        target_modules=target_modules(lora),
        use_gradient_checkpointing="unsloth" if place.device.type == "cuda" else False,
        random_state=seed,
    )
    adapted.peft_config["default"].base_model_name_or_path = path  # and not the snapshot's
    return adapted


def snapshot(path: str, revision: str) -> str:
    """A model of the Hub as a folder that holds this revision of it: Unsloth drops `revision` where vLLM loads the
    weights, and takes the newest. Raises BadInput where it is not to be had.
    """
    if Path(path).exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"model.name={path!r} cannot be loaded at model.revision={revision}: {said}") from None


def to_training(model: Any) -> None:
    """Puts a model that has answered back to training. Unsloth's answers turn gradient checkpointing off, and its RLOO
    trainer, unlike its GRPO trainer, never turns it on again; a model that Unsloth has not loaded only needs its mode.
    """
    model.train()
    if hasattr(model, "for_training"):
        model.for_training(use_gradient_checkpointing=getattr(model, "_unsloth_gradient_checkpointing", True))
