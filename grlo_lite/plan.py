"""Does a recipe fit on a card, how long does it take, what does it cost: before anything is downloaded. No torch.

`python -m grlo_lite.plan [RECIPE] [section.key=value …] [--gpu NAME]`; docs/planner.md has the method.
"""

import sys

from grlo_lite.cli import command_line, parsed_with_recipe, run_command, settle_libraries
from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.evaluation.tasks import suites
from grlo_lite.planning import evaluation, memory, recipe_cards, this_machine
from grlo_lite.planning.cards import Card, known_card
from grlo_lite.planning.changes import cheapest_change
from grlo_lite.planning.planner import plan
from grlo_lite.planning.recipe_cards import card_of
from grlo_lite.planning.shown import plans_table, text
from grlo_lite.planning.this_machine import seen_card
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe


def main(argv: list[str] | None = None) -> int:
    """Prints the plan; returns 3 where the recipe does not fit. Raises BadInput where the input cannot be used."""
    parser = command_line("plan", "VRAM, hours and cost of a recipe on a GPU.")
    parser.add_argument("--gpu", help="a known card, or its memory as VRAM=24 (default: the one in this machine)")
    parser.add_argument("--probe", action="store_true", help="measure this machine first, for about a minute")
    parser.add_argument("--all", action="store_true", help="every shipped recipe on every known card, as a table")
    parser.add_argument("--evaluate", choices=suites.SUITES, help="what evaluating a run of it by this suite takes")
    parser.add_argument("--limit", type=int, help="with --evaluate: questions a task")
    arguments, named, overrides = parsed_with_recipe(parser, argv)
    if arguments.probe and (arguments.gpu or arguments.all):
        raise BadInput("--probe measures this machine; leave --gpu and --all out")
    if arguments.all:
        print(plans_table())
        return 0
    here = known_card(arguments.gpu) if arguments.gpu else seen_card()
    name = named or recipe_cards.recipe_for(here or this_machine.cpu_card())
    recipe = recipes.load(name, overrides)
    if arguments.probe:
        here = _probed(recipe)
    if here is None:
        here = card_of(recipes.short_name(name))
        print(f"no GPU here and no --gpu: planned for {here.title}")
    if arguments.evaluate:
        print(evaluation.suite_plan(arguments.evaluate, arguments.limit, evaluation.setting(recipe, here)))
        return 0
    planned = plan(recipe, here)
    print(f"recipe {recipes.short_name(name)}\n{text(recipe, here, planned)}")
    print(evaluation.share(planned, evaluation.setting(recipe, here)))
    if planned.fits:
        return 0
    print(f"the cheapest change that fits: {cheapest_change(recipe, here) or 'none; choose a smaller recipe'}")
    return DoesNotFit.exit_code


def _probed(recipe: Recipe) -> Card:
    """The device of this machine with what is measured now; the CPU where there is no GPU that PyTorch can use."""
    shape = memory.models(recipe).policy
    settle_libraries(offline=True)
    from grlo_lite.planning import probe

    before = this_machine.this_card(recipe.cpu_dtype)
    print(f"measuring {before.title}, for about a minute:", flush=True)
    print(f"filed in {probe.probe(recipe, before, shape)}", flush=True)
    return this_machine.this_card(recipe.cpu_dtype)


if __name__ == "__main__":
    sys.exit(run_command(main))
