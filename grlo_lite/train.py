"""The job: `python -m grlo_lite.train [RECIPE] [section.key=value …]`.

Reads top to bottom: which recipe, which run directory, prompts, models, TRL's loop, and the measurement at the end.
"""

import argparse
import io
import json
import signal
import sys
from pathlib import Path

from grlo_lite.cli import INTERRUPTED, command_line, parsed_with_recipe, run_command, settle_cuda, settle_libraries
from grlo_lite.errors import DoesNotFit
from grlo_lite.machine import cuda, processes
from grlo_lite.models import first_stage
from grlo_lite.models.backends import Place, place
from grlo_lite.models.trained_adapter import stages_of
from grlo_lite.planning import this_machine
from grlo_lite.prompts.prepared import PromptRows, needs_no_hub, prompt_rows
from grlo_lite.recipe.schema import Recipe
from grlo_lite.reporting import page
from grlo_lite.rewards.sources import require_rewards, require_usable
from grlo_lite.rundir import files, layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training.choosing import recipe_to_run, run_to_resume
from grlo_lite.training.dry_run import dry_run
from grlo_lite.training.fitting import fitted, smaller


def main(argv: list[str] | None = None) -> int:
    """Trains, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments, named, overrides = _parsed(argv)
    settle_cuda()  # before a card is looked at

    # 1. The recipe, and the run to go on with, if any
    run = None
    if arguments.resume:
        run, recipe, name, why = run_to_resume(arguments.run_dir, named, overrides)
    else:
        recipe, name, why = recipe_to_run(named, overrides)
    print(f"recipe {name}: {why}", flush=True)
    settle_libraries(offline=needs_no_hub(recipe))
    if arguments.dry_run:
        return dry_run(recipe, name, arguments.write_prompts)
    recipe = first_stage.required(recipe)
    require_usable(recipe.reward, arguments.allow_code_execution)

    # 2. The machine; Unsloth is imported here, before all that it patches
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until there is a step to finish
    cuda.require_usable_gpu()
    where = place(recipe)
    if not processes.is_main():
        sys.stdout = io.StringIO()
    if where.device.type == "cuda":
        cuda.require_compiler()
        recipe = fitted(recipe, this_machine.this_card(), resuming=run is not None)

    # 3. The prompts, and the run directory
    rows = prompt_rows(recipe, arguments.write_prompts)
    require_rewards(recipe.reward, [*rows.train, *rows.heldout])
    is_new = run is None
    run = run or layout.begun(arguments.run_dir, name, recipe, rows.contamination)
    print(f"run directory {run.path}", flush=True)

    # 4. Models, loop, measurement; however that ends, a directory without a step is not left behind
    try:
        return _trained(recipe, run, rows, where)
    except KeyboardInterrupt:
        if run.metrics.exists():
            print(f"\ninterrupted; go on with: python -m grlo_lite.train --run-dir {run.path} --resume", flush=True)
        return INTERRUPTED
    except DoesNotFit as error:
        raise DoesNotFit(f"{error}; the cheapest change to try: {smaller(recipe, where.device)}") from error
    finally:
        if is_new and processes.is_main():
            layout.discard_if_unused(run)


def _trained(recipe: Recipe, run: RunDir, rows: PromptRows, where: Place) -> int:
    """One run from loaded models to a saved adapter; returns the exit code."""
    from grlo_lite.evaluation import end_of_run
    from grlo_lite.training import loop

    measurement = end_of_run.measurement(recipe)
    loaded = loop.loaded(recipe, rows, where)
    to_answer = end_of_run.answer_bytes(measurement, len(rows.heldout))
    checkpoint = loop.begun_or_resumed(recipe, run, loaded, rows, to_answer)
    with loop.full_disk_told(run, loaded):
        ended = loop.optimized(recipe, run, loaded, rows, checkpoint)
    if ended["stopped_because"] == "interrupted":
        raise KeyboardInterrupt
    if processes.is_main():
        stages = stages_of(files.read_json(run.environment).get("lineage", []))
        evaluation, answers = end_of_run.measured(measurement, loaded.policy, loaded.rewards, rows.heldout, stages)
        with loop.full_disk_told(run, loaded):
            if answers:
                files.write_atomically(run.answers, files.json_lines(answers))
            loop.save(recipe, run, loaded, ended, evaluation)
        print(end_of_run.closing_lines(evaluation, run))
        print(page.closing_line(run))
    return 0


def _parsed(argv: list[str] | None) -> tuple[argparse.Namespace, str | None, list[str]]:
    description = "Reinforcement learning from a reward model on chat prompts, on one GPU or a CPU."
    parser = command_line("train", description)
    parser.add_argument("--run-dir", type=Path, help="where the run lives (default: runs/<recipe>-<time>)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --run-dir, or with the newest unfinished one"
    )
    shown = "print the resolved recipe, what it will do and the first prompt; load no weights"
    parser.add_argument("--dry-run", action="store_true", help=shown)
    parser.add_argument(
        "--write-prompts", type=Path, metavar="FILE", help="save the prompts that cleaning leaves, as JSON lines"
    )
    parser.add_argument(
        "--from",
        dest="first_stage",
        metavar="RUN",
        help="go on from a run's adapter, with a fresh optimizer, as model.adapter=RUN",
    )
    parser.add_argument(
        "--allow-code-execution", action="store_true", help="run the model's code for a reward, in the sandbox"
    )
    arguments, named, overrides = parsed_with_recipe(parser, argv)
    if arguments.first_stage:
        overrides = [*overrides, f"model.adapter={json.dumps(arguments.first_stage)}"]
    return arguments, named, overrides


if __name__ == "__main__":
    sys.exit(run_command(main))
