"""The known cards: memory, speed, price."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from grlo_lite.errors import BadInput

NUMBERS = Path(__file__).parent / "numbers"


GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU, or a CPU with its memory, as the planner sees it."""

    name: str  # as in numbers/cards.yaml
    title: str  # for people
    cuda: bool
    bf16: bool  # a CPU: whether the recipe has it compute in bf16
    vram: int  # bytes, as PyTorch reports them
    flops: float  # a second, reached in large 16-bit matrix products
    few_rows_flops: float  # a second, that rows beyond the first reach in a token's products with all weights
    bytes_a_second: float  # of weights, that a token of one row reaches in these products
    activation_bytes_a_second: float  # reached by a layer's element-wise kernels
    dequantized_a_second: float  # weights from NF4
    fused_1: float  # weights a second in a 4-bit product of one row, as bitsandbytes makes it; the rows' FLOPs aside
    fused_16: float  # of sixteen
    fused_32: float  # of thirty-two
    drawn_a_second: float  # logits among which a token is drawn
    layer_seconds: float  # of host time that a decoder layer with adapter and NF4 takes at a token's step
    dense_layer_seconds: float  # the same without adapter and NF4
    token_seconds: float  # of host time a token beside the layers
    context: int  # bytes that are no tensor's
    reserve: int  # bytes kept free
    activation_share: float = 1.0  # what a layer keeps for its backward pass, over what memory.py counts
    logit_bytes: float = 12.0  # of a logit while its loss goes backward: fp32, its gradient, the gradient's copy
    sm: tuple[int, int] = (0, 0)  # compute capability times ten, and multiprocessors; zeros where they are not known
    probed: str | None = None  # when --probe measured the rates; None where data sheet and assumptions speak

    @property
    def float_bytes(self) -> int:
        """Bytes of a number that is not quantized: bf16 or fp16 on a GPU, fp32 or bf16 on a CPU."""
        return 2 if self.cuda or self.bf16 else 4

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
def numbers_in(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def known_cards() -> dict[str, Card]:
    """The cards of numbers/cards.yaml by name."""
    return {
        name: card_of_row(name, name, row, row["vram_gib"])
        for name, row in numbers_in(NUMBERS / "cards.yaml")["cards"].items()
    }


def card_of_row(name: str, title: str, row: dict[str, Any], vram_gib: float) -> Card:
    assumed = numbers_in(NUMBERS / "cards.yaml")["assumed"]["cuda" if name != "cpu" else "cpu"]
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
        fused_1=streamed / assumed["fused_bytes"],
        fused_16=streamed / assumed["fused_bytes"],
        fused_32=streamed / assumed["fused_bytes"],
        drawn_a_second=streamed / assumed["drawing_bytes"],
        layer_seconds=assumed["layer_microseconds"] * 1e-6,
        dense_layer_seconds=assumed["dense_layer_microseconds"] * 1e-6,
        token_seconds=assumed["token_microseconds"] * 1e-6,
        context=int(assumed["context_gib"] * GIB),
        reserve=int(assumed["fragmentation"] * vram_gib * GIB),
        sm=tuple(row.get("sm", (0, 0))),
    )


def laptop_card() -> Card:
    """A CPU of 8 GiB as slow as numbers/cards.yaml assumes one to be."""
    return card_of_row("cpu", "a laptop's CPU with 8 GiB", numbers_in(NUMBERS / "cards.yaml")["assumed"]["cpu"], 8.0)


def known_card(name: str) -> Card:
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


def recognized(name: str, vram: int, bf16: bool) -> Card:
    """The known card of that device name whose memory is nearest, with the memory that this one has; a card of which
    only the memory is known where no name matches.
    """
    rows = numbers_in(NUMBERS / "cards.yaml")["cards"]
    named = [k for k, row in rows.items() if (name == row["name"] if row.get("exact") else row["name"] in name)]
    if not named:
        return unknown_card(name, vram / GIB, bf16)
    cards = known_cards()
    nearest = min(named, key=lambda k: abs(cards[k].vram - vram))
    return replace(cards[nearest], title=name, vram=vram, reserve=cards[nearest].reserve * vram // cards[nearest].vram)


def price(card: Card) -> float | None:
    """US dollars an hour, by numbers/prices.yaml or the file that GRLO_LITE_PRICES names; None where it has none.

    Raises BadInput where that file is none of prices.
    """
    own = os.environ.get("GRLO_LITE_PRICES")
    path = Path(own) if own else NUMBERS / "prices.yaml"
    try:
        prices = numbers_in(path)
        row = prices.get(card.name)
        return None if row is None else float(row["usd"] if isinstance(row, dict) else row)
    except OSError as error:
        raise BadInput(f"GRLO_LITE_PRICES={own} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(
            f"GRLO_LITE_PRICES={own} holds no price of {card.name}; write a line such as rtx4090: 0.34"
        ) from None
