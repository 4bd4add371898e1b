"""Where a run computes: the device, its dtype, its free bytes."""

import os
from typing import Any

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


def float_dtype(device: Any) -> Any:
    """The dtype of what is not quantized: fp32 on a CPU, bf16 on a GPU that computes in it, fp16 on one before
    Ampere.
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def free_bytes(device: Any) -> int:
    """What this process may still allocate on a GPU: free memory and its own cache, within its memory fraction."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    cap = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + reserved, cap) - allocated)


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at once would have done: what Accelerate takes for it, and two errors that it does not know, those
    of cuBLAS, which finds no room for its handle or workspace, and of the driver.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    of_cuda = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDA driver error: out of memory")
    if isinstance(error, RuntimeError) and any(words in str(error) for words in of_cuda):
        return True
    return should_reduce_batch_size(error)
