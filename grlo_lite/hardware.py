"""What this machine has, and what the known cards have: device, dtype, memory, speed, price; which recipe suits it."""

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from grlo_lite.errors import BadInput

NUMBERS = Path(__file__).parent / "numbers"
GIB = 2**30

# What a probe measures, as fields of Card, and what it is filed with
RATES = (
    "flops",
    "few_rows_flops",
    "bytes_a_second",
    "activation_bytes_a_second",
    "dequantized_a_second",
    "drawn_a_second",
    "layer_seconds",
    "dense_layer_seconds",
    "token_seconds",
    "context",
    "activation_share",
    "logit_bytes",
)
PROBE_KEYS = {"device": str, "vram": int, "torch": str, "date": str, "rates": dict}

# The least memory a recipe is for, in GiB as PyTorch reports a card; the first row that a card reaches is its recipe
RECIPES = (
    (75.0, "qwen3-4b-80gb"),
    (44.0, "qwen3-8b-48gb"),
    (21.9, "qwen3-4b-24gb"),
    (14.5, "qwen3-4b-16gb"),
    (11.5, "qwen3-1.7b-12gb"),
    (7.5, "qwen3-0.6b-8gb"),
)


@dataclass(frozen=True)
class Card:
    """A GPU, or a CPU with its memory, as the planner sees it."""

    name: str  # as in numbers/cards.yaml
    title: str  # for people
    cuda: bool
    bf16: bool
    vram: int  # bytes, as PyTorch reports them
    flops: float  # a second, reached in large 16-bit matrix products
    few_rows_flops: float  # a second, that rows beyond the first reach in a token's products with all weights
    bytes_a_second: float  # of weights, that a token of one row reaches in these products
    activation_bytes_a_second: float  # reached by a layer's element-wise kernels
    dequantized_a_second: float  # weights from NF4
    drawn_a_second: float  # logits among which a token is drawn
    layer_seconds: float  # of host time that a decoder layer with adapter and NF4 takes at a token's step
    dense_layer_seconds: float  # the same without adapter and NF4
    token_seconds: float  # of host time a token beside the layers
    context: int  # bytes that are no tensor's
    reserve: int  # bytes kept free
    activation_share: float = 1.0  # what a layer keeps for its backward pass, over what memory.py counts
    logit_bytes: float = 12.0  # of a logit while its loss goes backward: fp32, its gradient, the gradient's copy
    probed: str | None = None  # when --probe measured the rates; None where data sheet and assumptions speak

    @property
    def float_bytes(self) -> int:
        """Of what is not quantized: bf16 or fp16 on a GPU, fp32 on a CPU."""
        return 2 if self.cuda else 4

    @property
    def type(self) -> str:
        """As torch.device has it."""
        return "cuda" if self.cuda else "cpu"

    @property
    def measured(self) -> bool:
        return self.probed is not None

    @property
    def usable(self) -> int:
        """Bytes that a run may reach."""
        return self.vram - self.reserve


@cache
def _numbers(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def known_cards() -> dict[str, Card]:
    """The cards of numbers/cards.yaml by name."""
    return {
        name: _card(name, name, row, row["vram_gib"]) for name, row in _numbers(NUMBERS / "cards.yaml")["cards"].items()
    }


def _card(name: str, title: str, row: dict[str, Any], vram_gib: float) -> Card:
    assumed = _numbers(NUMBERS / "cards.yaml")["assumed"]["cuda" if name != "cpu" else "cpu"]
    streamed = row["gb_s"] * 1e9 * assumed["memory"]
    flops = row["tflops"] * 1e12 * row.get("matmul", assumed["matmul"])
    return Card(
        name=name,
        title=title,
        cuda=name != "cpu",
        bf16=row.get("bf16", False),
        vram=int(vram_gib * GIB),
        flops=flops,
        few_rows_flops=flops * assumed["few_rows"],
        bytes_a_second=streamed,
        activation_bytes_a_second=streamed,
        dequantized_a_second=streamed / assumed["dequantizing_bytes"],
        drawn_a_second=streamed / assumed["drawing_bytes"],
        layer_seconds=assumed["layer_microseconds"] * 1e-6,
        dense_layer_seconds=assumed["dense_layer_microseconds"] * 1e-6,
        token_seconds=assumed["token_microseconds"] * 1e-6,
        context=int(assumed["context_gib"] * GIB),
        reserve=int(assumed["fragmentation"] * vram_gib * GIB),
    )


def card(name: str) -> Card:
    """A known card, or `VRAM=24`: a card with so many GiB as fast as the slowest known one that has them.

    Raises BadInput for any other name.
    """
    cards = known_cards()
    if name.lower() in cards:
        return cards[name.lower()]
    key, equals, size = name.partition("=")
    if key.upper() == "VRAM" and equals:
        try:
            gib = float(size.lower().removesuffix("gib").removesuffix("gb"))
        except ValueError:
            gib = 0.0
        if 0 < gib < 1e6:
            return unknown_card(f"VRAM={gib:g}", gib)
        raise BadInput(f"--gpu {name} holds no size; write the memory in GiB, for instance VRAM=24")
    raise BadInput(f"--gpu {name!r} is not known; choose one of {', '.join(cards)}, or give its memory as VRAM=24")


def unknown_card(title: str, gib: float, bf16: bool = True) -> Card:
    """A card of which only the memory is known: as fast as the slowest known card of at least 9/10 of it."""
    cards = [c for c in known_cards().values() if c.vram >= 0.9 * gib * GIB] or list(known_cards().values())
    like = min(cards, key=lambda c: (c.vram > 1.3 * gib * GIB, c.bytes_a_second))
    share = like.reserve / like.vram
    return replace(
        like, name="other", title=f"{title}, timed as {like.name}", bf16=bf16, vram=int(gib * GIB),
        reserve=int(share * gib * GIB),
    )  # fmt: skip


def cpu_card() -> Card:
    """This machine's CPU with its RAM."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    card = _card("cpu", "this CPU", _numbers(NUMBERS / "cards.yaml")["assumed"]["cpu"], gib)
    return probed(card, cpu_name(), card.vram)


def cpu_name() -> str:
    """What a probe of this CPU is filed under: its model and the threads that PyTorch is told to use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{model}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads"


def this_card() -> Card:
    """What a run here would use: the first CUDA GPU, with what the process may have of its memory, else the CPU.
    Imports torch.
    """
    import torch

    if not torch.cuda.is_available():
        return cpu_card()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    vram = int(properties.total_memory * torch.cuda.get_per_process_memory_fraction())
    card = recognized(properties.name, vram, (properties.major, properties.minor) >= (8, 0))
    return probed(card, properties.name, properties.total_memory)


def recognized(name: str, vram: int, bf16: bool) -> Card:
    """The known card of that device name whose memory is nearest, with the memory that this one has; a card of which
    only the memory is known where no name matches.
    """
    rows = _numbers(NUMBERS / "cards.yaml")["cards"]
    named = [k for k, row in rows.items() if (name == row["name"] if row.get("exact") else row["name"] in name)]
    if not named:
        return unknown_card(name, vram / GIB, bf16)
    cards = known_cards()
    nearest = min(named, key=lambda k: abs(cards[k].vram - vram))
    return replace(cards[nearest], title=name, vram=vram, reserve=cards[nearest].reserve * vram // cards[nearest].vram)


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
    return row["device"] == device and same_size and row["torch"] == torch_version()


def torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def recipe_for(card: Card) -> str:
    """The shipped recipe that suits a card: the microcosm's on a CPU, and on a GPU too small for any other."""
    if not card.cuda:
        return "microcosm"
    return next((name for gib, name in RECIPES if card.vram >= gib * GIB), "microcosm")


def price(card: Card) -> float | None:
    """US dollars an hour, by numbers/prices.yaml or the file that GRLO_LITE_PRICES names; None where it has none.

    Raises BadInput where that file is none of prices.
    """
    own = os.environ.get("GRLO_LITE_PRICES")
    path = Path(own) if own else NUMBERS / "prices.yaml"
    try:
        prices = _numbers(path)
        row = prices.get(card.name)
        return None if row is None else float(row["usd"] if isinstance(row, dict) else row)
    except OSError as error:
        raise BadInput(f"GRLO_LITE_PRICES={own} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(
            f"GRLO_LITE_PRICES={own} holds no price of {card.name}; write a line such as rtx4090: 0.34"
        ) from None


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


def free_bytes(device: Any) -> int:
    """What this process may still allocate on a GPU: free memory and its own cache, within its memory fraction."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    cap = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + reserved, cap) - allocated)
