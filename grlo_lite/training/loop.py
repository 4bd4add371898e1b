"""One run from loaded models to a saved adapter."""

from pathlib import Path
from typing import Any

from grlo_lite import prompts
from grlo_lite.evaluation import end_of_run
from grlo_lite.evaluation.end_of_run import measured_run
from grlo_lite.generation import engines
from grlo_lite.machine import processes
from grlo_lite.models import backends, names
from grlo_lite.models import loading as models
from grlo_lite.planning import planner, this_machine
from grlo_lite.recipe.schema import Recipe
from grlo_lite.reporting import model_card
from grlo_lite.rewards.heldout import loaded_heldout_judge
from grlo_lite.rundir import disk_space, files
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training.resuming import begin_or_resume


def train_run(
    recipe: Recipe, name: str, run: RunDir, device: Any, backend: str, train_rows: list, heldout_rows: list
) -> int:
    from grlo_lite.models import chat_template, trained_adapter
    from grlo_lite.rewards.reward_function import RewardFunction
    from grlo_lite.rundir.disk_space import checkpoint_bytes
    from grlo_lite.training import environment

    # 1. The policy and, beside it, the reward models
    policy, judges = models.load_policy_and_judges(recipe, device, backend)
    stop_ids = chat_template.stop_token_ids(policy.tokenizer)
    rewards = RewardFunction(judges, stop_ids, recipe.reward, recipe.rollout.group_size, recipe.seed)
    heldout_judge, unseen = loaded_heldout_judge(recipe, policy, rewards, heldout_rows, device)

    # 2. The run directory, as far as it can be written now
    next_checkpoint = checkpoint_bytes(policy.model)
    disk_space.require_space(run, _bytes_to_write(recipe, next_checkpoint))
    checkpoint = begin_or_resume(run, environment.facts(name, policy, [*judges, *unseen], train_rows, recipe.seed))

    # 3. Training; an interruption leaves through the same door, with a checkpoint saved
    with disk_space.full_disk_told(run, next_checkpoint):
        ended = _optimize(recipe, run, policy, rewards, train_rows, heldout_judge, device, backend, checkpoint)
    if ended["stopped_because"] == "interrupted":
        raise KeyboardInterrupt
    if not processes.is_main():
        return 0

    # 4. The measurement, the adapter, and last of all the summary
    evaluation = measured_run(recipe, policy, rewards, heldout_rows)
    card = model_card.model_card(recipe, name, names.policy_path(recipe), evaluation)
    with disk_space.full_disk_told(run, next_checkpoint):
        trained_adapter.save_adapter(policy.model, policy.tokenizer, run.adapter, card)
        files.write_json(run.evaluation, evaluation)
        files.write_json(run.summary, _summary(recipe, name, run, ended))
    print(end_of_run.closing_table(evaluation, run))
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
    from grlo_lite.monitoring.guards import Watch
    from grlo_lite.monitoring.halvings import Halvings
    from grlo_lite.monitoring.pace import Pace, against_plan
    from grlo_lite.monitoring.recorder import Journal
    from grlo_lite.training import micro_batches, out_of_memory
    from grlo_lite.training.boundary import Boundary
    from grlo_lite.training.stopping import Stops
    from grlo_lite.training.trainer import composed_trainer

    expected = planner.expected(recipe, this_machine.this_card()) if processes.count() == 1 else None
    before = files.read_lines(run.metrics)[-1] if checkpoint else {}
    updates = recipe.algorithm.updates_per_rollout
    halvings = Halvings(run)
    out_of_memory.generate_in_parts(policy.model, policy.tokenizer.pad_token_id, halvings)
    out_of_memory.score_in_parts([judge for _, _, judge in rewards.judges], halvings)
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
    watch = Watch(recipe.guards, run, journal.latest, journal.why_no_signal)
    boundary = Boundary(run, updates)
    callbacks = [boundary, journal, watch, stops]
    engine = backends.engine(recipe, device, backend)

    def trainer(micro: int) -> Any:
        return composed_trainer(recipe, run.partial, policy, rewards, train_rows, callbacks, device, micro, engine)

    micro = halvings.smallest("update") or micro_batches.micro_batch(recipe, device)
    batch = micro_batches.batch_an_update(recipe)
    stops.listen()
    try:
        with engines.rollouts(recipe, policy, engine):
            if checkpoint is None:
                _tell_how_answers_end(recipe, policy, train_rows)
            out_of_memory.train_halving(trainer, micro, batch, checkpoint, boundary, halvings, journal.adopt)
    finally:
        journal.close_bar()
    stops.ignore()
    return {
        "wall_seconds": stops.elapsed_seconds,
        "stopped_because": watch.because or stops.because,
        **({"out_of_memory": halvings.made} if halvings.made else {}),
        **({"plan": against_plan(files.read_lines(run.metrics), expected)} if expected else {}),
    }


def _tell_how_answers_end(recipe: Recipe, policy: Any, rows: list) -> None:
    """Asks the policy some of the run's prompts before its first step, and says whether its answers end."""
    from grlo_lite.models import endings

    asked = prompts.ordered(rows, endings.PROMPTS, recipe.seed)
    seen = endings.endings(policy, asked, recipe.rollout.max_tokens, recipe.rollout.temperature)
    print(f"before the first step: {endings.found(seen, recipe)}", flush=True)
    if mend := endings.mend(seen, recipe):
        print(f"  → {mend}", flush=True)


def _bytes_to_write(recipe: Recipe, checkpoint: int) -> int:
    """What a run will take on the disk: the checkpoints that are kept, the best and the one being written; the adapter
    twice; and a line of metrics and the samples for each step, at six bytes a token.
    """
    a_step = 2000 + recipe.logging.samples_per_step * 6 * (recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    return (recipe.budget.checkpoints_kept + 3) * checkpoint + recipe.budget.steps * a_step


def _summary(recipe: Recipe, name: str, run: RunDir, ended: dict[str, Any]) -> dict[str, Any]:
    first, *_, last = [files.read_lines(run.metrics)[i] for i in (0, -1)]
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
        "adapter_sha256": files.file_sha256(run.adapter / "adapter_model.safetensors"),
    }
