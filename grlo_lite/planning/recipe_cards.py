"""Which recipe is for which card."""

from grlo_lite.planning import this_machine
from grlo_lite.planning.cards import GIB, Card, known_card, laptop_card

# The least memory a recipe is for, in GiB as PyTorch reports a card; the first row that a card reaches is its recipe
RECIPES = (
    (75.0, "qwen3-4b-80gb"),
    (44.0, "qwen3-8b-48gb"),
    (21.9, "qwen3-4b-24gb"),
    (14.5, "qwen3-4b-16gb"),
    (11.5, "qwen3-1.7b-12gb"),
    (7.5, "qwen3-0.6b-8gb"),
)


def recipe_for(card: Card) -> str:
    """The shipped recipe that suits a card: the microcosm's on a CPU, and on a GPU too small for any other."""
    if not card.cuda:
        return "microcosm"
    return next((name for gib, name in RECIPES if card.vram >= gib * GIB), "microcosm")


def card_of(name: str) -> Card:
    """The card that a shipped recipe is for, by the number in its name."""
    cards = {"80gb": "a100-80", "48gb": "l40s", "24gb": "rtx4090", "16gb": "t4", "12gb": "VRAM=12", "8gb": "VRAM=8"}
    if name.endswith("-cpu"):
        return laptop_card()
    return next((known_card(card) for size, card in cards.items() if f"-{size}" in name), this_machine.cpu_card())
