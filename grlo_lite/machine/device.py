"""Where a run computes: the device, its dtype, its free bytes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SMALL = 4_000_000  # parameters of a model whose products are too small to be worth a second thread


def this_device() -> Any:
    """The device a run uses: the first CUDA GPU, its rank's where there are several processes, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState()  # makes the rank's GPU the current one; Accelerate refuses a model that is on another
    return torch.device("cuda", torch.cuda.current_device())


def settle_threads(model: Any) -> None:
    """One thread for a small model on a CPU, so that what it computes does not depend on the number of cores.

    Sums are split among the threads, and rounded accordingly. OMP_NUM_THREADS, where the user set it, decides instead.
    """
    import torch

    small = model.device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


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
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_says("flags", cpuinfo).split())


def cpu_says(field: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux says of the first CPU in a field such as `model name`; empty where it says nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def free_bytes(device: Any) -> int:
    """What this process may still allocate on a GPU: free memory and its own cache, within its memory fraction."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    cap = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + reserved, cap) - allocated)


def until_it_fits(attempt: Callable[[], T], smaller: Callable[[], None]) -> T:
    """What `attempt` gives. Each time that it runs out of memory, `smaller` makes it ask for less, or raises.

    The error is let go of before the memory is cleared: its frames hold what filled it.
    """
    from accelerate.utils.memory import clear_device_cache

    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
        smaller()


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at once would have done: what Accelerate takes for it, and two errors that it does not know, those
    of cuBLAS, which finds no room for its handle or workspace, and of the driver.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    of_cuda = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDA driver error: out of memory")
    of_cuda_alone = isinstance(error, RuntimeError) and any(words in str(error) for words in of_cuda)
    return of_cuda_alone or should_reduce_batch_size(error)
