"""The job: `python -m grlo_lite.train [RECIPE] [section.key=value …]`.

Reads top to bottom: which recipe, which run directory, prompts, policy, reward model, TRL's trainer, and the
measurement at the end.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from grlo_lite import microcosm, prompts, rundir
from grlo_lite import recipe as recipes
from grlo_lite.cli import INTERRUPTED, run_command, settle_libraries
from grlo_lite.recipe import BadInput, Recipe
from grlo_lite.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    """Trains, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments, overrides = _parsed(argv)
    if arguments.resume:
        run = rundir.to_resume(arguments.run_dir)
        recipe, name = _resumed_recipe(run, arguments.recipe, overrides), run.recipe_name()
        why = f"resuming the run {run.path}"
    else:
        name = arguments.recipe or "microcosm"
        recipe = recipes.load(name, overrides)
        why = (
            "named on the command line"
            if arguments.recipe
            else "none was named, and the built-in miniature world runs anywhere"
        )
        name = Path(name).stem
    print(f"recipe {name}: {why}", flush=True)

    models = (_policy_path(recipe), _reward_path(recipe))
    settle_libraries(offline=_needs_no_hub(recipe, models))
    if arguments.dry_run:
        return _dry_run(recipe, arguments.write_prompts)
    device, backend = _device_and_backend(recipe)
    train_rows, heldout_rows, contamination = _prompt_rows(recipe, arguments.write_prompts)
    if not arguments.resume:
        run = rundir.create(arguments.run_dir or rundir.default_path(name))
        rundir.write_json(run.contamination, contamination)
    print(f"run directory {run.path}", flush=True)
    try:
        return _train(recipe, name, run, device, backend, train_rows, heldout_rows)
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: python -m grlo_lite.train --run-dir {run.path} --resume")
        return INTERRUPTED
    finally:
        rundir.discard_if_unused(run)


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
    arguments = parser.parse_args(argv)
    overrides = [word for word in arguments.words if "=" in word]
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise BadInput(
            f"{named[1]!r} has no '=' and the recipe is {named[0]!r} already; write an override as section.key=value"
        )
    arguments.recipe = named[0] if named else None
    return arguments, overrides


def _resumed_recipe(run: RunDir, named: str | None, overrides: list[str]) -> Recipe:
    """The run's own recipe; its budget alone may be changed, for nothing else could be changed and still be the same
    run.
    """
    changes = [override for override in overrides if not override.startswith("budget.")]
    if named or changes:
        raise BadInput(f"a resumed run keeps its recipe; leave out {named or changes[0]!r} (only budget.… may change)")
    recipe = recipes.load(str(run.recipe), overrides)
    if overrides:
        rundir.write_atomically(run.recipe, recipes.dumped(recipe))
    return recipe


def _policy_path(recipe: Recipe) -> str:
    return _model_path("model.name", recipe.model.name, microcosm.POLICY)


def _reward_path(recipe: Recipe) -> str:
    return _model_path("reward.name", recipe.reward.name, microcosm.REWARD)


def _model_path(key: str, name: str, shipped: Path) -> str:
    """`microcosm` means the shipped model; a path must exist; all else is a model of the Hub."""
    if name == "microcosm":
        return str(shipped)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise BadInput(
            f"{key}={name!r}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or microcosm"
        )
    return name


def _needs_no_hub(recipe: Recipe, models: tuple[str, str]) -> bool:
    """Whether all is local, or the Hub, which prompts are to come from, does not answer: then its cache has to do."""
    against = recipe.prompts.decontaminate.against if recipe.prompts.decontaminate.enabled else ()
    named = [*recipe.prompts.parts(), *against]
    if any(prompts.on_the_hub(place if isinstance(place, str) else place.source) for place in named):
        return not prompts.hub_answers()
    return all(Path(path).exists() for path in models)


def _prompt_rows(
    recipe: Recipe, write_to: Path | None
) -> tuple[list[prompts.Messages], list[prompts.Messages], dict[str, Any]]:
    """The prompts that are worth asking and no benchmark's, split into those to train on and those to measure on; and
    the content of contamination.json.
    """
    from grlo_lite.policy import formatted, load_tokenizer

    wanted = recipe.prompts
    rows, notes = prompts.load(wanted.parts(), wanted.limit, recipe.seed)
    tokenizer = load_tokenizer(_policy_path(recipe), recipe.model.revision)

    def token_count(messages: prompts.Messages) -> int:
        return len(tokenizer(formatted(tokenizer, messages), add_special_tokens=False)["input_ids"])

    rows, steps = prompts.cleaned(
        rows, token_count, wanted.max_tokens, wanted.overlong, wanted.near_duplicates, wanted.language
    )
    rows, contamination = _decontaminated(recipe, rows, steps)
    print("\n".join([*(f"prompts: {note}" for note in notes), prompts.table(steps)]))
    print(prompts.verdict(contamination))
    if write_to:
        prompts.write(write_to, rows)
    train_rows, heldout_rows = prompts.split(rows, recipe.evaluation.heldout_prompts, recipe.seed)
    print(f"prompts: {len(train_rows)} to train on, {len(heldout_rows)} held out", flush=True)
    return train_rows, heldout_rows, contamination


def _decontaminated(
    recipe: Recipe, rows: list[prompts.Messages], steps: list[prompts.Step]
) -> tuple[list[prompts.Messages], dict[str, Any]]:
    """The rows that ask no question of the evaluation sets, and contamination.json's content; adds its step to the
    others.
    """
    from grlo_lite.microcosm import world

    wanted = recipe.prompts.decontaminate
    domains = world.VERIFIABLE if recipe.evaluation.suite == "microcosm" else ()
    suite_sets = tuple(f"microcosm-{domain}" for domain in domains) or prompts.SUITE_SETS
    if not wanted.enabled:
        return rows, prompts.unchecked_report("prompts.decontaminate.enabled=false", suite_sets)
    exams = [world.exam(domain, recipe.evaluation.limit, recipe.seed) for domain in domains]
    sets = [prompts.question_set(f"microcosm-{exam[0].domain}", [q.text for q in exam]) for exam in exams]
    sets += prompts.question_sets(wanted.against, () if exams else suite_sets)
    rows, step, report = prompts.decontaminated(rows, sets, wanted.ngram, wanted.similarity)
    steps.append(step)
    return rows, report


def _device_and_backend(recipe: Recipe) -> tuple[Any, str]:
    """Where the run computes and who loads its policy; imports Unsloth, if it is that, before all that Unsloth patches."""
    from grlo_lite import hardware, policy as policies

    device = hardware.device()
    backend = policies.chosen_backend(recipe.backend, device)
    if backend == "unsloth":
        policies.import_unsloth()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return device, backend


def _dry_run(recipe: Recipe, write_to: Path | None) -> int:
    from grlo_lite.policy import formatted, load_tokenizer

    rows, *_ = _prompt_rows(recipe, write_to)
    tokenizer = load_tokenizer(_policy_path(recipe), recipe.model.revision)
    steps, rollout = recipe.budget.steps, recipe.rollout
    groups = rollout.batch // rollout.group_size
    print(f"\n{recipes.dumped(recipe)}")
    print(f"plan: {steps} steps of {rollout.batch} rollouts ({groups} prompts × {rollout.group_size} completions),")
    print(f"at most {steps * rollout.batch * rollout.max_tokens:,} generated tokens\n")
    first = prompts.ordered(rows, 1, recipe.seed)[0]
    print(f"the first prompt, as the policy sees it:\n{formatted(tokenizer, first)}")
    return 0


def _train(
    recipe: Recipe, name: str, run: RunDir, device: Any, backend: str, train_rows: list, heldout_rows: list
) -> int:
    from grlo_lite import algorithm, environment, policy as policies, reward as reward_models
    from grlo_lite.guards import Stops
    from grlo_lite.journal import Journal

    # 1. The policy and, beside it, the reward model
    policy = policies.load(
        _policy_path(recipe),
        recipe.model.revision,
        recipe.model.quantization,
        recipe.lora,
        backend,
        device,
        recipe.prompts.max_tokens + recipe.rollout.max_tokens,
        recipe.seed,
    )
    reward_model = reward_models.load(
        _reward_path(recipe),
        recipe.reward.revision,
        recipe.reward.quantization,
        device,
        recipe.reward.max_tokens,
        16_384 if recipe.reward.tokens_per_batch == "auto" else recipe.reward.tokens_per_batch,
    )
    rewards = reward_models.RewardFunction(
        reward_model,
        policies.stop_token_ids(policy.tokenizer),
        recipe.reward.truncated,
        recipe.reward.length_penalty,
        recipe.reward.length_free,
        recipe.seed if recipe.reward.shuffle else None,
    )

    # 2. The run directory, as far as it can be written now
    checkpoint = _begin(run, recipe, environment.facts(name, policy, reward_model, train_rows, recipe.seed))
    before = rundir.read_lines(run.metrics)[-1] if checkpoint else {}

    # 3. TRL's trainer, composed of these
    stops = Stops(recipe.budget, recipe.algorithm.updates_per_rollout, before.get("elapsed_seconds", 0.0))
    journal = Journal(
        run,
        rewards,
        recipe.budget,
        recipe.algorithm.updates_per_rollout,
        recipe.logging.samples_per_step,
        lambda: stops.elapsed_seconds,
        (before.get("rollouts", 0), before.get("generated_tokens", 0)),
    )
    trainer = algorithm.trainer(recipe, run.partial, policy, rewards, train_rows, [journal, stops], device)

    # 4. Training; an interruption leaves through the same door, with a checkpoint saved
    stops.listen()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stops.ignore()
    if stops.because == "interrupted":
        raise KeyboardInterrupt

    # 5. The adapter, the measurement, and last of all the summary
    evaluation = _measured(recipe, policy, reward_model, heldout_rows)
    policies.save_adapter(policy.model, policy.tokenizer, run.adapter, model_card(recipe, name, evaluation))
    rundir.write_json(run.evaluation, evaluation)
    rundir.write_json(run.summary, _summary(recipe, name, run, stops))
    print(closing_table(evaluation, run))
    return 0


def _begin(run: RunDir, recipe: Recipe, facts: dict[str, Any]) -> Path | None:
    """Writes what is known before the first step, or, in a run that is resumed, finds the checkpoint to go on from.

    Raises BadInput where a resumed run's prompts or chat template are no longer those it began with.
    """
    if not run.environment.exists():
        rundir.write_atomically(run.recipe, recipes.dumped(recipe))
        rundir.write_json(run.environment, facts)
        return None
    began_with = json.loads(run.environment.read_text(encoding="utf-8"))
    for key, mend in {"prompts_sha256": "prompts.source", "template_sha256": "model.name"}.items():
        if began_with[key] != facts[key]:
            raise BadInput(f"the run {run.path} began with another {key}; what {mend} names has changed since")
    checkpoints = run.complete_checkpoints()
    run.cut_lines_after(int(checkpoints[-1].name[5:]) if checkpoints else 0)
    return checkpoints[-1] if checkpoints else None


def _measured(recipe: Recipe, policy: Any, reward_model: Any, heldout_rows: list) -> dict[str, Any]:
    """Base against tuned on the held-out prompts and on the recipe's suite, as evaluation.json holds it."""
    from grlo_lite import measure
    from grlo_lite import policy as policies

    sampling = {
        "max_tokens": recipe.rollout.max_tokens,
        "rows_at_once": recipe.rollout.batch if policy.model.device.type == "cuda" else 512,
    }

    def formatted(messages: prompts.Messages) -> str:
        return policies.formatted(policy.tokenizer, messages)

    heldout, accuracies = None, {}
    if len(heldout_rows) > 1:
        print(f"measuring: {len(heldout_rows)} held-out prompts, base and tuned", flush=True)
        heldout = measure.heldout_reward(
            policy.model, policy.tokenizer, heldout_rows, formatted, reward_model.score, seed=recipe.seed, **sampling
        )
    if recipe.evaluation.suite == "microcosm":
        print(f"measuring: {recipe.evaluation.limit} questions a domain, base and tuned", flush=True)
        accuracies = measure.microcosm_accuracies(
            policy.model, policy.tokenizer, formatted, recipe.evaluation.limit, recipe.seed, **sampling
        )
    return measure.evaluation(recipe.evaluation.suite, heldout, accuracies)


def _summary(recipe: Recipe, name: str, run: RunDir, stops: Any) -> dict[str, Any]:
    first, *_, last = [rundir.read_lines(run.metrics)[i] for i in (0, -1)]
    hours = stops.elapsed_seconds / 3600
    price = recipe.budget.usd_per_hour
    return {
        "recipe": name,
        "steps": last["step"],
        "rollouts": last["rollouts"],
        "generated_tokens": last["generated_tokens"],
        "wall_seconds": stops.elapsed_seconds,
        "gpu_hours": hours if "peak_vram_gib" in last else 0.0,
        **({"cost_usd": hours * price} if price else {}),
        "reward_first": first["reward_mean"],
        "reward_last": last["reward_mean"],
        "stopped_because": stops.because,
        "adapter_sha256": rundir.file_sha256(run.adapter / "adapter_model.safetensors"),
    }


def closing_table(evaluation: dict[str, Any], run: RunDir) -> str:
    """The last lines of a run: base against tuned with 95 % intervals, and what to type next."""
    rows = [("", "questions", "base", "tuned", "difference", "95 % interval")]
    for task in evaluation["tasks"]:
        rows.append((f"{task['domain']} ({task['metric']})", str(task["n"]), *_numbers(task)))
    if "average" in evaluation:
        rows.append(("average accuracy", "", *_numbers(evaluation["average"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    commands = (
        f"head -n 4 {run.samples}",
        "python -m grlo_lite.train seed=1",
        "python -m grlo_lite.train reward.shuffle=true",
    )
    notes = (
        "what was said at the first step",
        "the same with another seed",
        "the control: shuffled rewards must teach nothing",
    )
    width = max(map(len, commands))
    following = [f"  {command.ljust(width)}  # {note}" for command, note in zip(commands, notes, strict=True)]
    return "\n".join(["", *lines, "", f"the adapter is in {run.adapter}; next:", *following])


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['base']:.3f}",
        f"{row['tuned']:.3f}",
        f"{row['difference']:+.3f}",
        f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
    )


def model_card(recipe: Recipe, name: str, evaluation: dict[str, Any]) -> str:
    """The adapter's README: what it is, how to load it, what was measured."""
    base = _policy_path(recipe)
    quantized = ", quantization_config=nf4" if recipe.model.quantization == "nf4" else ""
    return f"""---
base_model: {base}
library_name: peft
tags: [grlo, lora, trl, {recipe.algorithm.name}]
---

# {name}

A LoRA adapter (rank {recipe.lora.rank}) trained with grlo_lite by {recipe.algorithm.name.upper()} against the
reward model `{recipe.reward.name}` on the prompts of
`{", ".join(part.source for part in recipe.prompts.parts())}`, seed {recipe.seed}. The base model was in
{"NF4 with double quantization" if quantized else "full precision"}; load it the same way:

```python
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoPeftModelForCausalLM.from_pretrained("ADAPTER"{quantized})
tokenizer = AutoTokenizer.from_pretrained("ADAPTER")
```

| | n | base | tuned | difference | 95 % interval |
| --- | --- | --- | --- | --- | --- |
""" + "".join(
        f"| {task['domain']} ({task['metric']}) | {task['n']} | {' | '.join(_numbers(task))} |\n"
        for task in evaluation["tasks"]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
