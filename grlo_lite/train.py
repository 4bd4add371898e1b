"""The job: `python -m grlo_lite.train [RECIPE] [section.key=value …]`.

Reads top to bottom: which recipe, which run directory, prompts, policy, reward model, TRL's trainer, and the
measurement at the end.
"""

import argparse
import io
import signal
import sys
from pathlib import Path
from typing import Any

from grlo_lite.cli import INTERRUPTED, run_command, settle_cuda, settle_libraries
from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.machine import cuda, processes
from grlo_lite.models import loading as models
from grlo_lite.planning import cards, planner, recipe_cards, shown, this_machine
from grlo_lite.planning.changes import cheapest_change
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir import files, layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training.dry_run import dry_run
from grlo_lite.training.resuming import resumed_recipe


def main(argv: list[str] | None = None) -> int:
    """Trains, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments, overrides = _parsed(argv)
    settle_cuda()  # before a card is looked at
    run, recipe, name, why = _chosen(arguments, overrides)
    print(f"recipe {name}: {why}", flush=True)
    settle_libraries(offline=prepared.needs_no_hub(recipe))
    if arguments.dry_run:
        return dry_run(recipe, name, arguments.write_prompts)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until there is a step to finish
    cuda.require_usable_gpu()
    device, backend = models.device_and_backend(recipe)
    if device.type == "cuda":
        cuda.require_compiler()
    from grlo_lite.training.loop import train_run  # torch, Transformers and TRL: after Unsloth, if it is that

    if not processes.is_main():
        sys.stdout = io.StringIO()
    card = this_machine.this_card()
    if device.type == "cuda":
        recipe = _planned(recipe, card, resuming=run is not None)
    train_rows, heldout_rows, contamination = prepared.prompt_rows(recipe, arguments.write_prompts)
    is_new = run is None
    run = run or _created(arguments.run_dir or layout.default_path(name), name, recipe, contamination)
    print(f"run directory {run.path}", flush=True)
    try:
        return train_run(recipe, name, run, device, backend, train_rows, heldout_rows)
    except KeyboardInterrupt:
        if run.metrics.exists():
            print(f"\ninterrupted; go on with: python -m grlo_lite.train --run-dir {run.path} --resume", flush=True)
        return INTERRUPTED
    except DoesNotFit as error:
        raise DoesNotFit(f"{error}; the cheapest change to try: {_smaller(recipe, device)}") from error
    finally:
        if is_new and processes.is_main():
            layout.discard_if_unused(run)


def _created(path: Path, name: str, recipe: Recipe, contamination: dict[str, Any]) -> RunDir:
    """The new run directory, which the main process makes and the others are told."""
    if processes.is_main():
        run = layout.create(path, name, recipes.dumped(recipe))
        files.write_json(run.contamination, contamination)
    return RunDir(processes.agreed(path))


def _chosen(arguments: argparse.Namespace, overrides: list[str]) -> tuple[RunDir | None, Recipe, str, str]:
    """The run to go on with, if any; the recipe, its name, and why it is that one."""
    if arguments.resume:
        run = layout.to_resume(arguments.run_dir)
        return run, resumed_recipe(run, arguments.recipe, overrides), run.recipe_name(), f"resuming the run {run.path}"
    if arguments.recipe:
        return (
            None,
            recipes.load(arguments.recipe, overrides),
            recipes.short_name(arguments.recipe),
            "named on the command line",
        )
    if this_machine.seen_card() is not None:  # torch takes seconds to import, and decides whether the GPU can be used
        card = this_machine.this_card()
        name = recipe_cards.recipe_for(card)
        if name != "microcosm":
            return None, recipes.load(name, overrides), name, f"none was named, and it suits {card.title}"
    why = "none was named, and the built-in miniature world runs anywhere"
    return None, recipes.load("microcosm", overrides), "microcosm", why


def _planned(recipe: Recipe, card: cards.Card, resuming: bool) -> Recipe:
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


def _smaller(recipe: Recipe, device: Any) -> str:
    """What to change after memory ran out for good: the planner's cheapest change, else half the completion length."""
    change = None
    if device.type == "cuda":
        try:
            change = cheapest_change(recipe, this_machine.this_card())
        except BadInput:  # the model's shape is not at hand
            change = None
    return change or f"rollout.max_tokens={max(recipe.rollout.max_tokens // 2, 1)}"


def _parsed(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m grlo_lite.train",
        allow_abbrev=False,
        description="Reinforcement learning from a reward model on chat prompts, on one GPU or a CPU.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE | section.key=value",
        help="a shipped recipe or a YAML file, and overrides of its keys",
    )
    parser.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/<recipe>-<time>)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --run-dir, or with the newest unfinished one"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, what it will do and the first prompt; load no weights",
    )
    parser.add_argument(
        "--write-prompts", type=Path, metavar="FILE", help="save the prompts that cleaning leaves, as JSON lines"
    )
    arguments = parser.parse_intermixed_args(argv)
    overrides = [word for word in arguments.words if "=" in word]
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise BadInput(
            f"{named[1]!r} has no '=' and the recipe is {named[0]!r} already; write an override as section.key=value"
        )
    arguments.recipe = named[0] if named else None
    return arguments, overrides


if __name__ == "__main__":
    sys.exit(run_command(main))
