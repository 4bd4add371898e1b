"""Where a run computes: the device, its dtype, its free bytes."""

from pathlib import Path
from typing import Any


def this_device() -> Any:
    """The device a run uses: the first CUDA GPU, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def float_dtype(device: Any, cpu_dtype: str = "fp32") -> Any:
    """The dtype of what is not quantized: on a CPU what `cpu_dtype` says, bf16 on a GPU that computes in it, fp16 on
    one before Ampere.

    `auto` is bf16 on a CPU that multiplies in it (AMX, AVX512-BF16): 8 and 2.3 times as fast as in fp32. Others convert
    to fp32 and back, so there it is fp32.
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.bfloat16 if computes_in_bf16(cpu_dtype) else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def computes_in_bf16(cpu_dtype: str) -> bool:
    """What a recipe's `cpu_dtype` means on this CPU."""
    return cpu_dtype == "bf16" or (cpu_dtype == "auto" and cpu_multiplies_bf16())


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for products of bf16, by the flags that Linux names."""
    try:
        said = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in said.splitlines() if line.startswith("flags")), [])
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def free_bytes(device: Any) -> int:
    """What this process may still allocate on a GPU: free memory and its own cache, within its memory fraction."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    cap = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + reserved, cap) - allocated)
