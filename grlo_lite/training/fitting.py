"""What a run takes from its plan: sizes that fit, or what to change."""

from contextlib import suppress
from typing import Any

from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.planning import planner, shown, this_machine
from grlo_lite.planning.cards import Card
from grlo_lite.planning.changes import cheapest_change
from grlo_lite.recipe.schema import Recipe


def fitted(recipe: Recipe, card: Card, resuming: bool) -> Recipe:
    """The recipe with the plan's sizes in place of `auto`. A resumed run keeps its own sizes, and a model whose shape
    is not at hand is tried without a plan. Raises DoesNotFit, with the cheapest change that fits.
    """
    try:
        planned = planner.plan(recipe, card)
    except BadInput as error:
        print(f"no plan: {error}", flush=True)
        return recipe
    print(f"{shown.verdict(card, planned)}; {shown.cost(planned)} planned", flush=True)
    if not planned.fits:
        change = cheapest_change(recipe, card) or "none; choose a smaller recipe"
        raise DoesNotFit(f"the recipe does not fit on {card.title}; the cheapest change that fits: {change}")
    return recipe if resuming else planner.resolved(recipe, planned)


def smaller(recipe: Recipe, device: Any) -> str:
    """What to change after memory ran out for good: the planner's cheapest change, else half the completion length."""
    change = None
    if device.type == "cuda":
        with suppress(BadInput):  # the model's shape is not at hand
            change = cheapest_change(recipe, this_machine.this_card())
    return change or f"rollout.max_tokens={max(recipe.rollout.max_tokens // 2, 1)}"
