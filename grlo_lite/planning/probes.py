"""What `--probe` has measured on this machine, on file."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.machine.versions import installed
from grlo_lite.planning.cards import Card

# What a probe measures, as fields of Card, and how it says so: in which unit, in which words
RATES = {
    "flops": (1e12, "TFLOP/s in large matrix products"),
    "bytes_a_second": (1e9, "GB/s of weights in a token's products with one row"),
    "few_rows_flops": (1e12, "TFLOP/s for further rows"),
    "dequantized_a_second": (1e9, "billion weights a second from NF4"),
    "fused_1": (1e9, "billion weights a second in a 4-bit product of one row"),
    "fused_16": (1e9, "billion weights a second in one of 16 rows"),
    "fused_32": (1e9, "billion weights a second in one of 32 rows"),
    "drawn_a_second": (1e9, "billion logits a second among which a token is drawn"),
    "layer_seconds": (1e-6, "µs of the host for a layer of a token, with adapter and NF4"),
    "dense_layer_seconds": (1e-6, "µs for one without"),
    "token_seconds": (1e-6, "µs of the host for a token beside its layers"),
    "activation_bytes_a_second": (1e9, "GB/s in a layer's element-wise kernels"),
    "activation_share": (1, "of the counted activations are kept for a backward pass"),
    "logit_bytes": (1, "bytes a logit in the loss"),
    "context": (2**30, "GiB beside all tensors"),
}


# What that is filed with
PROBE_KEYS = {"device": str, "vram": int, "torch": str, "date": str, "rates": dict}


def probes_path() -> Path:
    """The file of what --probe measured: GRLO_LITE_PROBES, else one in the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GRLO_LITE_PROBES") or cache / "grlo_lite" / "probes.json")


def probes() -> list[dict[str, Any]]:
    """What --probe has measured on this machine. Raises BadInput where the file is damaged."""
    path = probes_path()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["probes"]
        for row in rows:
            if not all(isinstance(row[key], kind) for key, kind in PROBE_KEYS.items()):
                raise TypeError("a value of another kind")
            if not all(0 < row["rates"][rate] < float("inf") for rate in RATES):
                raise ValueError("a rate that is none")
        return rows
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; it holds what --probe measured") from None
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} is damaged ({' '.join(str(error).split())[:80]}); it holds what --probe measured: delete it, "
            "and run python -m grlo_lite.plan --probe again"
        ) from None


def probed(card: Card, device: str, vram: int) -> Card:
    """The card with the rates that --probe measured on this device, of this memory, with the torch installed here;
    unchanged where it has not. Raises BadInput where the file of the probes is damaged.
    """
    for row in probes():
        if same_device(row, device, vram):
            return replace(card, **{rate: row["rates"][rate] for rate in RATES}, probed=row["date"])
    return card


def same_device(row: dict[str, Any], device: str, vram: int) -> bool:
    """Whether a row of the probes' file is of this device, with the torch installed here; nvidia-smi and PyTorch do
    not agree on its memory to the byte.
    """
    same_size = abs(row["vram"] - vram) <= 0.05 * vram
    return row["device"] == device and same_size and row["torch"] == installed("torch")
