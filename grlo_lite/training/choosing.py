"""Which recipe a run is of, and which run is gone on with."""

from pathlib import Path

from grlo_lite.planning import recipe_cards, this_machine
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir import layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training.resuming import resumed_recipe


def run_to_resume(path: Path | None, named: str | None, overrides: list[str]) -> tuple[RunDir, Recipe, str, str]:
    """The run to go on with, its recipe, the recipe's name, and why it is that one."""
    run = layout.to_resume(path)
    return run, resumed_recipe(run, named, overrides), run.recipe_name(), f"resuming the run {run.path}"


def recipe_to_run(named: str | None, overrides: list[str]) -> tuple[Recipe, str, str]:
    """The recipe of a new run, its name, and why it is that one: named, or the one that suits this machine."""
    if named:
        return recipes.load(named, overrides), recipes.short_name(named), "named on the command line"
    if this_machine.seen_card() is not None:  # torch takes seconds to import, and decides whether the GPU can be used
        card = this_machine.this_card()
        name = recipe_cards.recipe_for(card)
        if name != "microcosm":
            return recipes.load(name, overrides), name, f"none was named, and it suits {card.title}"
    why = "none was named, and the built-in miniature world runs anywhere"
    return recipes.load("microcosm", overrides), "microcosm", why
