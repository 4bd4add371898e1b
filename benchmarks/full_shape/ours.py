"""The kit's side: `grlo_lite.train` itself, with the clock beside its callbacks."""

import argparse
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.full_shape.clock import Phases, capped, clock, loaded, what_was_measured
from benchmarks.full_shape.random_models import LORA_RANK, SEED, SHAPES, ends_decoded_rows, ends_rows, limits


def our_recipe(arguments: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The recipe that does the shape's work."""
    folder, allowed = arguments.folder, limits(arguments)
    rollouts, group, _ = SHAPES[arguments.shape]["rollouts"]
    return {
        "seed": SEED,
        "backend": arguments.backend,
        "model": {"name": str(folder / "policy")},
        "lora": {"rank": LORA_RANK, "alpha": 2 * LORA_RANK},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "max_tokens": allowed["prompts"],
            "near_duplicates": None,
            "decontaminate": False,
        },
        "rollout": {
            "group_size": group,
            "batch": rollouts,
            "max_tokens": allowed["completions"],
            "engine": arguments.engine,
        },
        "reward": {"name": str(folder / "reward")},
        "optimizer": {"name": "adamw_8bit" if device.type == "cuda" else "adamw", "micro_batch": allowed["micro"]},
        "budget": {"steps": arguments.steps + 1, "checkpoint_every": 1000},
        "evaluation": {"heldout_prompts": 0},
        "logging": {"samples_per_step": 0},
    }


def our_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """`grlo_lite.train` as it is, with the clock beside its callbacks and completions that end where they are told."""
    from grlo_lite import plan, train
    from grlo_lite.models import backends
    from grlo_lite.models import loading as models

    if arguments.backend == "unsloth":
        backends.import_unsloth()  # before all that it patches: the probe imports Transformers, the trainer TRL

    device, shape, folder = capped(arguments), SHAPES[arguments.shape], arguments.folder
    (folder / "recipe.yaml").write_text(yaml.safe_dump(our_recipe(arguments, device)))
    if arguments.probe:
        os.environ["GRLO_LITE_PROBES"] = str(folder / "probes.json")
        plan.main([str(folder / "recipe.yaml"), "--probe"])
    load_policy = models.load_policy
    phases = Phases(device.type == "cuda")
    before: list[int | None] = []

    def loading(*words: Any) -> Any:
        from grlo_lite.training import loop  # TRL, which has to come after Unsloth

        policy = load_policy(*words)
        loop.composed_trainer = partial(training, loop.composed_trainer)
        ends_rows(policy.model, shape, never=arguments.longest)  # where the engine is `generate`
        ends_decoded_rows(shape, never=arguments.longest)
        return policy

    def training(trainer: Any, recipe: Any, materials: Any, output: Path, callbacks: Any, micro: int) -> Any:
        watch, timed = clock(materials.reward, phases, arguments.profile)
        before.append(loaded(device))
        return trainer(recipe, replace(materials, reward=timed), output, [watch, *callbacks], micro)

    models.load_policy = loading
    if train.main([str(folder / "recipe.yaml"), "--run-dir", str(folder / "run")]):
        raise SystemExit("the run failed")
    halved = json.loads((folder / "run" / "summary.json").read_text()).get("out_of_memory", [])
    return what_was_measured(phases, before[0]) | {"plan": planned(arguments), "out_of_memory": halved}


def planned(arguments: argparse.Namespace) -> dict[str, float]:
    """What `grlo_lite.plan` says of the same recipe on this card under the cap: GiB and seconds by phase."""
    from grlo_lite.planning import planner, this_machine
    from grlo_lite.recipe import loading as recipes

    said = planner.plan(recipes.load(str(arguments.folder / "recipe.yaml"), []), this_machine.this_card())
    memory = {f"{phase}_gib": sum(parts.values()) / 2**30 for phase, parts in said.vram.items()}
    return memory | {f"{phase}_seconds": seconds for phase, seconds in said.seconds.items()}
