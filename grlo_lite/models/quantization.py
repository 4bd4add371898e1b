"""Four-bit loading, shared by the policy and the reward model."""

from typing import Any

from grlo_lite.errors import BadInput

LARGE = 1 << 18  # numbers in an output layer; of a smaller one the copies cost nothing that can be measured


def from_pretrained(
    auto_class: Any, path: str, revision: str, quantization: str, device: Any, cpu_dtype: str = "fp32", **options: Any
) -> Any:
    """A model of `auto_class` on `device`, in NF4 with double quantization where `quantization` is `nf4`.

    What stays in floating point is of the dtype that `float_dtype` says. The `score` and `lm_head`
    layers are never quantized: naming any layer to skip replaces bitsandbytes' own list, so both are named. Only
    safetensors are read and no remote code is run. Raises BadInput where the path or hub id cannot be loaded.
    """
    import torch
    from transformers import BitsAndBytesConfig

    from grlo_lite.machine.device import float_dtype

    dtype = float_dtype(device, cpu_dtype)
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["score", "lm_head"],
        )
    device_map = {"": torch.device(device)}
    try:
        model = auto_class.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"the model {path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    keep_cpu_weights_unpacked(model)
    keep_one_output_matrix(model)
    return model


def keep_cpu_weights_unpacked(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    The repacking happens at the first forward in eval mode without gradients, and LoRA's gradients are about 100
    times too small from then on, without a word. Must be called before any forward.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def keep_one_output_matrix(model: Any) -> None:
    """Hands a large output layer in bf16 on a CPU what it reads in one piece.

    The states of the last tokens, which is what a loss asks for, are a slice, by which PyTorch copies a frozen layer's
    weight for every row of a batch before it multiplies: of SmolLM2's update, 8 rows at once, 8 % of the time. In fp32
    it copies nothing, and rounds as a plain Transformers model does, which likelihoods are held to.
    """
    import torch

    output = model.get_output_embeddings()
    if output is None or output.weight.device.type != "cpu" or output.weight.dtype != torch.bfloat16:
        return
    if output.weight.numel() >= LARGE:
        output.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
