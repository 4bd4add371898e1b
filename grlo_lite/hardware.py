"""What this machine has: its device, its dtype, its memory."""

from typing import Any


def device() -> Any:
    """The device a run uses: the first CUDA GPU, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def float_dtype(device: Any) -> Any:
    """The dtype of what is not quantized: fp32 on a CPU, bf16 on a GPU that computes in it, fp16 on one before
    Ampere.
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
