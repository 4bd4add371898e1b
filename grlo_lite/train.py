"""The job: `python -m grlo_lite.train [RECIPE] [section.key=value …]`.

Reads top to bottom: which recipe, which run directory, prompts, policy, reward model, TRL's trainer, and the
measurement at the end.
"""

import argparse
import io
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from grlo_lite import closing, hardware, parts, plan, processes, prompts, rundir
from grlo_lite import recipe as recipes
from grlo_lite.cli import INTERRUPTED, run_command, settle_libraries
from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.recipe import Recipe
from grlo_lite.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    """Trains, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments, overrides = _parsed(argv)
    run, recipe, name, why = _chosen(arguments, overrides)
    print(f"recipe {name}: {why}", flush=True)
    settle_libraries(offline=parts.needs_no_hub(recipe))
    if arguments.dry_run:
        return _dry_run(recipe, name, arguments.write_prompts)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until there is a step to finish
    device, backend = parts.device_and_backend(recipe)
    if not processes.is_main():
        sys.stdout = io.StringIO()
    card = hardware.this_card()
    if device.type == "cuda":
        recipe = _planned(recipe, card, resuming=run is not None)
    train_rows, heldout_rows, contamination = parts.prompt_rows(recipe, arguments.write_prompts)
    is_new = run is None
    run = run or _created(arguments.run_dir or rundir.default_path(name), name, recipe, contamination)
    print(f"run directory {run.path}", flush=True)
    try:
        return _train(recipe, name, run, device, backend, train_rows, heldout_rows)
    except KeyboardInterrupt:
        if run.metrics.exists():
            print(f"\ninterrupted; go on with: python -m grlo_lite.train --run-dir {run.path} --resume", flush=True)
        return INTERRUPTED
    except DoesNotFit as error:
        raise DoesNotFit(f"{error}; the cheapest change to try: {_smaller(recipe, device)}") from error
    finally:
        if is_new and processes.is_main():
            rundir.discard_if_unused(run)


def _created(path: Path, name: str, recipe: Recipe, contamination: dict[str, Any]) -> RunDir:
    """The new run directory, which the main process makes and the others are told."""
    if processes.is_main():
        run = rundir.create(path, name, recipes.dumped(recipe))
        rundir.write_json(run.contamination, contamination)
    return RunDir(processes.agreed(path))


def _chosen(arguments: argparse.Namespace, overrides: list[str]) -> tuple[RunDir | None, Recipe, str, str]:
    """The run to go on with, if any; the recipe, its name, and why it is that one."""
    if arguments.resume:
        run = rundir.to_resume(arguments.run_dir)
        return run, _resumed_recipe(run, arguments.recipe, overrides), run.recipe_name(), f"resuming the run {run.path}"
    if arguments.recipe:
        return (
            None,
            recipes.load(arguments.recipe, overrides),
            recipes.short_name(arguments.recipe),
            "named on the command line",
        )
    if plan.seen_card() is not None:  # torch takes seconds to import, and decides whether the GPU can be used
        card = hardware.this_card()
        name = hardware.recipe_for(card)
        if name != "microcosm":
            return None, recipes.load(name, overrides), name, f"none was named, and it suits {card.title}"
    why = "none was named, and the built-in miniature world runs anywhere"
    return None, recipes.load("microcosm", overrides), "microcosm", why


def _planned(recipe: Recipe, card: hardware.Card, resuming: bool) -> Recipe:
    """The recipe with the plan's sizes in place of `auto`. A resumed run keeps its own sizes, and a model whose shape
    is not at hand is tried without a plan. Raises DoesNotFit, with the cheapest change that fits.
    """
    try:
        planned = plan.plan(recipe, card)
    except BadInput as error:
        print(f"no plan: {error}", flush=True)
        return recipe
    print(f"{plan.verdict(card, planned)}; {plan.cost(planned)} planned", flush=True)
    if not planned.fits:
        change = plan.cheapest_change(recipe, card) or "none; choose a smaller recipe"
        raise DoesNotFit(f"the recipe does not fit on {card.title}; the cheapest change that fits: {change}")
    return recipe if resuming else plan.resolved(recipe, planned)


def _smaller(recipe: Recipe, device: Any) -> str:
    """What to change after memory ran out for good: the planner's cheapest change, else half the completion length."""
    change = None
    if device.type == "cuda":
        try:
            change = plan.cheapest_change(recipe, hardware.this_card())
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
    return _at_its_commits(recipe, run)


def _at_its_commits(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the Hub commits that the run began with in place of its models' revisions."""
    began_with = rundir.read_json(run.environment)
    commits = began_with.get("reward_model_commits") or {}
    policy = began_with.get("model_commit") or recipe.model.revision
    heldout = recipe.reward.heldout
    reward = recipe.reward.model_copy(
        update={
            "heldout": heldout.model_copy(update={"revision": commits.get(heldout.name) or heldout.revision}),
            "revision": commits.get(recipe.reward.name) or recipe.reward.revision,
            "models": tuple(
                judge.model_copy(update={"revision": commits.get(judge.name) or judge.revision})
                for judge in recipe.reward.models
            ),
        }
    )
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": policy}), "reward": reward})


def _dry_run(recipe: Recipe, name: str, write_to: Path | None) -> int:
    """Prints the resolved recipe, the plan and the first prompt, as far as they can be had without the network."""
    from grlo_lite.policy import formatted, load_tokenizer

    path = parts.policy_path(recipe)
    try:
        tokenizer = load_tokenizer(path, recipe.model.revision)
    except BadInput:
        if Path(path).exists():
            raise
        tokenizer = None
    rows, absent = [], None
    try:
        if tokenizer is None:
            rows, _ = prompts.load(recipe.prompts.parts(), recipe.prompts.limit, recipe.seed)
        else:
            rows, *_ = parts.prompt_rows(recipe, write_to)
    except prompts.Unreachable as error:
        absent = str(error)
    print(f"\n{recipes.dumped(recipe)}")
    steps, rollout = recipe.budget.steps, recipe.rollout
    groups = rollout.batch // rollout.group_size
    print(f"plan: {steps} steps of {rollout.batch} rollouts ({groups} prompts × {rollout.group_size} completions),")
    print(f"at most {steps * rollout.batch * rollout.max_tokens:,} generated tokens\n")
    card = plan.seen_card() or plan.card_of(name)
    try:
        print(f"{plan.text(recipe, card, plan.plan(recipe, card))}\n")
    except BadInput as error:
        print(f"no plan: {error}\n")
    if absent is not None:
        print(f"the prompts are not here: {absent}")
        return 0
    first = prompts.ordered(rows, 1, recipe.seed)[0]
    if tokenizer is None:
        print(f"the first prompt; its chat template comes with the tokenizer of {path}, which is not here:\n{first}")
    else:
        print(f"the first prompt, as the policy sees it:\n{formatted(tokenizer, first)}")
    return 0


def _train(
    recipe: Recipe, name: str, run: RunDir, device: Any, backend: str, train_rows: list, heldout_rows: list
) -> int:
    from grlo_lite import environment
    from grlo_lite import policy as policies
    from grlo_lite.journal import checkpoint_bytes
    from grlo_lite.shaping import RewardFunction

    # 1. The policy and, beside it, the reward models
    policy, judges = parts.load_policy_and_judges(recipe, device, backend)
    stop_ids = policies.stop_token_ids(policy.tokenizer)
    rewards = RewardFunction(judges, stop_ids, recipe.reward, recipe.rollout.group_size, recipe.seed)
    heldout_judge, unseen = _heldout_judge(recipe, policy, rewards, heldout_rows, device)

    # 2. The run directory, as far as it can be written now
    next_checkpoint = checkpoint_bytes(policy.model)
    rundir.require_space(run, _bytes_to_write(recipe, next_checkpoint))
    checkpoint = _begin(run, environment.facts(name, policy, [*judges, *unseen], train_rows, recipe.seed))

    # 3. Training; an interruption leaves through the same door, with a checkpoint saved
    with rundir.full_disk_told(run, next_checkpoint):
        ended = _optimize(recipe, run, policy, rewards, train_rows, heldout_judge, device, backend, checkpoint)
    if ended["stopped_because"] == "interrupted":
        raise KeyboardInterrupt
    if not processes.is_main():
        return 0

    # 4. The measurement, the adapter, and last of all the summary
    evaluation = _measured(recipe, policy, rewards, heldout_rows)
    card = closing.model_card(recipe, name, parts.policy_path(recipe), evaluation)
    with rundir.full_disk_told(run, next_checkpoint):
        policies.save_adapter(policy.model, policy.tokenizer, run.adapter, card)
        rundir.write_json(run.evaluation, evaluation)
        rundir.write_json(run.summary, _summary(recipe, name, run, ended))
    print(closing.table(evaluation, run))
    return 0


def _optimize(
    recipe: Recipe,
    run: RunDir,
    policy: Any,
    rewards: Any,
    train_rows: list,
    heldout_judge: Any,
    device: Any,
    backend: str,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Trains the policy's adapter, and returns how that ended, in summary.json's terms."""
    from grlo_lite import algorithm, halving
    from grlo_lite.guards import Stops, Watch
    from grlo_lite.journal import Journal
    from grlo_lite.pace import Pace, against_plan

    expected = plan.expected(recipe, hardware.this_card()) if processes.count() == 1 else None
    before = rundir.read_lines(run.metrics)[-1] if checkpoint else {}
    updates = recipe.algorithm.updates_per_rollout
    halvings = halving.Halvings(run)
    halving.generate_in_parts(policy.model, policy.tokenizer.pad_token_id, halvings)
    halving.score_in_parts([judge for _, _, judge in rewards.judges], halvings)
    stops = Stops(recipe.budget, updates, before.get("elapsed_seconds", 0.0))
    journal = Journal(
        run,
        rewards,
        recipe.budget,
        updates,
        recipe.logging.samples_per_step,
        lambda: stops.elapsed_seconds,
        (before.get("rollouts", 0), before.get("generated_tokens", 0)),
        heldout_judge,
        halvings,
        "reward_mean" if recipe.reward.heldout.name is None else "reward_heldout_mean",
        Pace(recipe.budget.steps, expected),
    )
    watch = Watch(recipe.guards, run, journal.latest)
    boundary = halving.Boundary(run, updates)
    callbacks = [boundary, journal, watch, stops]
    engine = parts.engine(recipe, device, backend)

    def trainer(micro: int) -> Any:
        return algorithm.trainer(recipe, run.partial, policy, rewards, train_rows, callbacks, device, micro, engine)

    micro = halvings.smallest("update") or algorithm.micro_batch(recipe, device)
    batch = algorithm.batch_an_update(recipe)
    stops.listen()
    with parts.rollouts(recipe, policy, engine):
        halving.train_halving(trainer, micro, batch, checkpoint, boundary, halvings, journal.adopt)
    stops.ignore()
    return {
        "wall_seconds": stops.elapsed_seconds,
        "stopped_because": watch.because or stops.because,
        **({"out_of_memory": halvings.made} if halvings.made else {}),
        **({"plan": against_plan(rundir.read_lines(run.metrics), expected)} if expected else {}),
    }


def _bytes_to_write(recipe: Recipe, checkpoint: int) -> int:
    """What a run will take on the disk: the checkpoints that are kept, the best and the one being written; the adapter
    twice; and a line of metrics and the samples for each step, at six bytes a token.
    """
    a_step = 2000 + recipe.logging.samples_per_step * 6 * (recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    return (recipe.budget.checkpoints_kept + 3) * checkpoint + recipe.budget.steps * a_step


def _begin(run: RunDir, facts: dict[str, Any]) -> Path | None:
    """Writes what is known before the first step, or, in a run that is resumed, finds the checkpoint to go on from.

    Raises BadInput where a resumed run's prompts or chat template are no longer those it began with.
    """
    began_with = processes.agreed(rundir.read_json(run.environment) if processes.is_main() else None)
    if "versions" not in began_with:
        if processes.is_main():
            rundir.write_json(run.environment, facts)
        return None
    for key, mend in {"prompts_sha256": "prompts.source", "template_sha256": "model.name"}.items():
        if began_with[key] != facts[key]:
            raise BadInput(f"the run {run.path} began with another {key}; what {mend} names has changed since")
    changed = [key for key in ("versions", "device", "driver", "threads") if began_with[key] != facts[key]]
    if changed:
        said = "; ".join(f"{key} {began_with[key]}, now {facts[key]}" for key in changed)
        print(f"the run goes on, but not bit for bit as it would have: {said}", flush=True)
    checkpoint = run.checkpoint_to_resume(processes.count()) if processes.is_main() else None
    checkpoint = processes.agreed(checkpoint)
    print(f"going on from {checkpoint.name}" if checkpoint else "no checkpoint was made yet: from the first step")
    return checkpoint


def _heldout_judge(
    recipe: Recipe, policy: Any, rewards: Any, heldout_rows: list, device: Any
) -> tuple[Any, list[tuple[str, float, Any]]]:
    """What the journal asks after each step, and the reward model behind it, as judges are listed; nothing where the
    recipe names none.
    """
    from grlo_lite import measure
    from grlo_lite import policy as policies
    from grlo_lite.guards import HeldoutJudge

    heldout = recipe.reward.heldout
    if heldout.name is None:
        return lambda step: {}, []
    model, fixed = parts.load_judge(recipe, heldout, device), heldout_rows[: heldout.prompts]
    if len(fixed) < 2:
        raise BadInput(
            f"reward.heldout.prompts={heldout.prompts}, but only {len(fixed)} prompts could be held out; add prompts"
        )
    sampling = parts.sampling(recipe, policy)

    def answers() -> list[prompts.Messages]:
        policy.model.eval()
        said = measure.sampled_answers(policy.model, policy.tokenizer, texts, seed=recipe.seed, **sampling)
        policy.model.train()
        return [[*p, {"role": "assistant", "content": text}] for p, text in zip(fixed, said, strict=True)]

    texts = [policies.formatted(policy.tokenizer, row) for row in fixed]
    return HeldoutJudge(answers, rewards.score, model.score, heldout.every), [(heldout.name, 0.0, model)]


def _measured(recipe: Recipe, policy: Any, rewards: Any, heldout_rows: list) -> dict[str, Any]:
    """Base against tuned on the held-out prompts and on the recipe's suite, as evaluation.json holds it."""
    from grlo_lite import measure
    from grlo_lite import policy as policies

    sampling, formatted = parts.sampling(recipe, policy), partial(policies.formatted, policy.tokenizer)
    heldout, accuracies = None, {}
    if len(heldout_rows) > 1 and recipe.evaluation.heldout_prompts:
        print(f"measuring: {len(heldout_rows)} held-out prompts, base and tuned", flush=True)
        heldout = measure.heldout_reward(
            policy.model, policy.tokenizer, heldout_rows, formatted, rewards.score, seed=recipe.seed, **sampling
        )
    if recipe.evaluation.suite == "microcosm":
        print(f"measuring: {recipe.evaluation.limit} questions a domain, base and tuned", flush=True)
        accuracies = measure.microcosm_accuracies(
            policy.model, policy.tokenizer, formatted, recipe.evaluation.limit, recipe.seed, **sampling
        )
    return measure.evaluation(recipe.evaluation.suite, heldout, accuracies)


def _summary(recipe: Recipe, name: str, run: RunDir, ended: dict[str, Any]) -> dict[str, Any]:
    first, *_, last = [rundir.read_lines(run.metrics)[i] for i in (0, -1)]
    hours = ended["wall_seconds"] / 3600
    price = recipe.budget.usd_per_hour
    return {
        "recipe": name,
        "steps": last["step"],
        "rollouts": last["rollouts"],
        "generated_tokens": last["generated_tokens"],
        "gpu_hours": hours if "peak_vram_gib" in last else 0.0,
        **({"cost_usd": hours * price} if price else {}),
        "reward_first": first["reward_mean"],
        "reward_last": last["reward_mean"],
        **ended,
        "adapter_sha256": rundir.file_sha256(run.adapter / "adapter_model.safetensors"),
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
