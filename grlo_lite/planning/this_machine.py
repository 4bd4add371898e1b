"""The card, or the CPU, that is here."""

import os
from dataclasses import replace
from functools import cache

from grlo_lite.machine.device import computes_in_bf16, cpu_says
from grlo_lite.machine.versions import command_output
from grlo_lite.planning.cards import GIB, NUMBERS, Card, card_of_row, numbers_in, recognized
from grlo_lite.planning.probes import probed


def cpu_card(cpu_dtype: str = "fp32") -> Card:
    """This machine's CPU with its RAM, computing in what a recipe's `cpu_dtype` means here."""
    in_bf16 = computes_in_bf16(cpu_dtype)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    card = card_of_row("cpu", "this CPU", numbers_in(NUMBERS / "cards.yaml")["assumed"]["cpu"], gib)
    return probed(replace(card, bf16=in_bf16), cpu_name(in_bf16), card.vram)


def cpu_name(in_bf16: bool = False) -> str:
    """What a probe of this CPU is filed under: its model, the threads that PyTorch is told to use, and bf16."""
    model = cpu_says("model name") or "CPU"
    return f"{model}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads{', bf16' if in_bf16 else ''}"


def this_card(cpu_dtype: str = "fp32") -> Card:
    """What a run here would use: the first CUDA GPU, with what the process may have of its memory, else the CPU.
    Imports torch.
    """
    import torch

    if not torch.cuda.is_available():
        return cpu_card(cpu_dtype)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    vram = int(properties.total_memory * torch.cuda.get_per_process_memory_fraction())
    card = recognized(properties.name, vram, (properties.major, properties.minor) >= (8, 0))
    return probed(card, properties.name, properties.total_memory)


@cache
def seen_card() -> Card | None:
    """The GPU that nvidia-smi sees here, without torch; None where there is none."""
    fields = "--query-gpu=name,memory.total,compute_cap"
    said = command_output("nvidia-smi", fields, "--format=csv,noheader,nounits") or ""
    try:
        name, mib, capability = (field.strip() for field in said.splitlines()[0].split(","))
        vram = int(0.98 * float(mib) * 2**20)
        card = recognized(name, vram, float(capability) >= 8)
    except (IndexError, ValueError):
        return None
    return probed(card, name, vram)
