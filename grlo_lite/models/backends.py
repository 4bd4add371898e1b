"""Which library loads the policy here, and which engine decodes, or why not."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models.vllm_here import require_vllm
from grlo_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Place:
    """Where a run computes: its device, the backend that loads its policy, and the engine that decodes."""

    device: Any
    backend: str = "transformers"
    engine: str = "generate"
    cpu_dtype: str = "fp32"  # of what is not quantized, where the device is a CPU


def place(recipe: Recipe) -> Place:
    """Where a recipe's run computes here. Imports Unsloth, if it is that, before all that Unsloth patches.

    Raises BadInput, with the reason, where the recipe's backend or engine cannot be had.
    """
    from grlo_lite.machine.device import this_device

    device = this_device()
    backend = backend_of(recipe, device)
    if recipe.lora.train_stop_tokens and backend == "unsloth":
        raise BadInput(
            "lora.train_stop_tokens=true with backend=unsloth: neither Unsloth's model nor its vLLM knows such rows; "
            "choose backend=transformers"
        )
    engine = chosen_engine(recipe.rollout.engine, backend, recipe.model.quantization, device)
    if engine == "vllm":
        require_vllm(recipe)
    if backend == "unsloth":
        import_unsloth(engine == "fast_inference")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return Place(device, backend, engine, recipe.cpu_dtype)


def backend_of(recipe: Recipe, device: Any) -> str:
    """The backend that loads a recipe's policy here; under PPO `auto` is Transformers, for Unsloth's compiled loss
    takes one advantage a completion and PPO gives one a token. Raises BadInput where Unsloth is asked for and not
    installed.
    """
    if recipe.algorithm.name == "ppo" and recipe.backend == "auto":
        return "transformers"
    return chosen_backend(recipe.backend, device)


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

    `auto` is the vLLM inside Unsloth's model where there is one, else `folded`, which itself goes on as `compact` where
    the dense copy does not fit. Raises BadInput where an engine cannot be had, with the reason.
    """
    with_vllm = importlib.util.find_spec("vllm") is not None
    if engine == "auto":
        return "fast_inference" if backend == "unsloth" and with_vllm and device.type == "cuda" else "folded"
    if engine == "fast_inference" and backend == "transformers":
        why = "vLLM under TRL is refused"
        if quantization == "nf4":
            why = (
                "TRL would merge the adapter into vLLM's and the policy's 4-bit weights and back at every step, "
                "which corrupts them (after 20 steps they had drifted by 47 %)"
            )
        raise BadInput(
            f"rollout.engine=fast_inference with backend=transformers: {why}; choose rollout.engine=vllm, which "
            "takes the adapter as it is, or rollout.engine=folded"
        )
    if engine == "fast_inference" and not (with_vllm and device.type == "cuda"):
        lacks = "vLLM is not installed" if not with_vllm else "there is no GPU"
        raise BadInput(f"rollout.engine=fast_inference, but {lacks}; choose rollout.engine=folded")
    return engine


def import_unsloth(fast_inference: bool = False) -> None:
    """Imports Unsloth, which must come before trl, transformers and peft, and keeps it from reporting to its makers.

    With `fast_inference`, vLLM sleeps while the policy is updated, which Unsloth reads off the environment here.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    if fast_inference:
        os.environ.setdefault("UNSLOTH_VLLM_STANDBY", "1")
    import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports]
