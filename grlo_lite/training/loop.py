"""The steps of a run, from loaded models to a saved adapter; `train` puts them in their order."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite import prompts
from grlo_lite.generation import engines
from grlo_lite.machine import processes
from grlo_lite.models import chat_template, endings, names, trained_adapter
from grlo_lite.models import loading as models
from grlo_lite.models.backends import Place
from grlo_lite.models.critic import Critic, critic_of
from grlo_lite.models.policy import Policy
from grlo_lite.monitoring.guards import Watch
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace, against_plan
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.monitoring.trackers import Followed
from grlo_lite.planning import planner, this_machine
from grlo_lite.prompts.prepared import PromptRows
from grlo_lite.recipe.schema import Recipe
from grlo_lite.reporting import model_card
from grlo_lite.rewards.heldout import loaded_heldout_judge
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.rundir import disk_space, files
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training import environment, micro_batches, out_of_memory
from grlo_lite.training.boundary import Boundary
from grlo_lite.training.resuming import begin_or_resume
from grlo_lite.training.stopping import Stops
from grlo_lite.training.trainer import Materials, composed_trainer


@dataclass(frozen=True)
class Loaded:
    """A run's models: the policy, the rewards by the judges it is trained on, and the judge that it is not."""

    policy: Policy
    rewards: RewardFunction
    heldout: Callable[[int], dict[str, float]]
    judges: list[tuple[str, float, Any]]  # name, weight, model, of both kinds
    place: Place
    critic: Critic | None = None  # PPO's


def loaded(recipe: Recipe, rows: PromptRows, place: Place) -> Loaded:
    """The recipe's models. Raises BadInput where one cannot be loaded or scores otherwise beside the others."""
    policy, judges = models.load_policy_and_judges(recipe, place)
    stop_ids = chat_template.stop_token_ids(policy.tokenizer)
    # Where each prompt is asked once, what is compared is the batch
    group = recipe.rollout.group_size if recipe.rollout.group_size > 1 else recipe.rollout.batch
    rewards = RewardFunction(judges, stop_ids, recipe.reward, group, recipe.seed)
    heldout, unseen = loaded_heldout_judge(recipe, policy, rewards, rows.heldout, place.device)
    return Loaded(policy, rewards, heldout, [*judges, *unseen], place, critic_of(recipe, policy.model))


def begun_or_resumed(recipe: Recipe, run: RunDir, parts: Loaded, rows: PromptRows, answers: int) -> Path | None:
    """The checkpoint to go on from; None in a new run, whose environment.json is written. Raises BadInput where the
    disk will not take the run and, at its end, so many bytes of `answers`.
    """
    disk_space.require_space(run, _bytes_to_write(recipe, _checkpoint_bytes(parts)) + answers)
    facts = environment.facts(run.recipe_name(), parts.policy, parts.judges, rows.train, recipe)
    return begin_or_resume(run, facts)


def full_disk_told(run: RunDir, parts: Loaded) -> AbstractContextManager[None]:
    """Inside, an error that comes of a full disk leaves as DiskFull."""
    return disk_space.full_disk_told(run, _checkpoint_bytes(parts))


def _checkpoint_bytes(parts: Loaded) -> int:
    critics = parts.critic.checkpoint_bytes if parts.critic else 0
    return disk_space.checkpoint_bytes(parts.policy.model) + critics


def optimized(recipe: Recipe, run: RunDir, parts: Loaded, rows: PromptRows, checkpoint: Path | None) -> dict[str, Any]:
    """How the training of the policy's adapter ended, in summary.json's terms."""
    card = this_machine.this_card(recipe.cpu_dtype)
    plan = planner.plan_if_known(recipe, card) if processes.count() == 1 else None
    before = files.read_lines(run.metrics)[-1]["elapsed_seconds"] if checkpoint else 0.0
    updates = recipe.algorithm.updates_per_rollout
    halvings = Halvings(run)
    out_of_memory.score_in_parts([judge for _, _, judge in parts.rewards.judges], halvings)

    # What goes along with TRL's loop, in the order in which it is called
    boundary, stops = Boundary(run, updates, parts.critic), Stops(recipe.budget, updates, before)
    pace = Pace(recipe.budget.steps, plan)
    recorder = Recorder(run, recipe, lambda: stops.elapsed_seconds, parts.heldout, halvings, pace, parts.critic)
    watch = Watch(recipe.guards, run, recorder.latest, recorder.why_no_signal)
    followed = Followed(run, recipe)
    callbacks = [boundary, recorder, watch, stops, followed]
    rewarded = handed_on(parts.rewards, recorder.take, rows.train)
    if parts.critic and checkpoint:
        parts.critic.load(checkpoint)
    micro = halvings.smallest("update") or micro_batches.micro_batch(recipe, parts.place.device)
    stops.listen()
    try:
        with engines.rollouts(recipe, parts.policy.model, parts.place.engine, halvings) as sampler:
            materials = Materials(
                parts.policy, rewarded, rows.train, parts.place, parts.critic, sampler, recorder.drift
            )  # fmt: skip

            def trainer(micro: int) -> Any:
                return composed_trainer(recipe, materials, run.partial, callbacks, micro)

            if checkpoint is None:
                _tell_how_answers_end(recipe, parts.policy, rows.train)
            out_of_memory.train_halving(trainer, recipe, micro, checkpoint, boundary, recorder)
    finally:
        recorder.close_bar()
        followed.close()
    stops.ignore()
    return {
        "wall_seconds": stops.elapsed_seconds,
        "stopped_because": watch.because or stops.because,
        **({"out_of_memory": halvings.made} if halvings.made else {}),
        **({"plan": against_plan(files.read_lines(run.metrics), plan)} if plan else {}),
    }


def _tell_how_answers_end(recipe: Recipe, policy: Policy, rows: list) -> None:
    """Asks the policy some of the run's prompts before its first step, and says whether its answers end."""
    asked = prompts.ordered(rows, endings.PROMPTS, recipe.seed)
    seen = endings.endings(policy, asked, recipe.rollout.max_tokens, recipe.rollout.temperature)
    print(f"before the first step: {endings.found(seen, recipe)}", flush=True)
    if mend := endings.mend(seen, recipe):
        print(f"  → {mend}", flush=True)


def save(recipe: Recipe, run: RunDir, parts: Loaded, ended: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Writes the adapter with its model card, evaluation.json, and last of all summary.json."""
    lineage = files.read_json(run.environment).get("lineage", [])
    base = names.hub_id_of(names.policy_path(recipe))
    card = model_card.model_card(recipe, run.recipe_name(), base, evaluation, lineage)
    trained_adapter.save_adapter(parts.policy.model, parts.policy.tokenizer, run.adapter, card)
    if parts.critic and recipe.algorithm.critic.save:
        parts.critic.save_weights(run.critic)
    files.write_json(run.evaluation, evaluation)
    files.write_json(run.summary, _summary(recipe, run, ended))


def _bytes_to_write(recipe: Recipe, checkpoint: int) -> int:
    """What a run will take on the disk: the checkpoints that are kept, the best and the one being written; the adapter
    twice; and a line of metrics and the samples for each step, at six bytes a token.
    """
    a_step = 2000 + recipe.logging.samples_per_step * 6 * (recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    return (recipe.budget.checkpoints_kept + 3) * checkpoint + recipe.budget.steps * a_step


def _summary(recipe: Recipe, run: RunDir, ended: dict[str, Any]) -> dict[str, Any]:
    lines = files.read_lines(run.metrics)
    first, last, updates = lines[0], lines[-1], recipe.algorithm.updates_per_rollout
    skipped = sum(line.get("skipped_update", 0) for line in lines)
    learnt = sum(line.get("skipped_update", 0) < updates for line in lines)
    hours = ended["wall_seconds"] / 3600
    price = recipe.budget.usd_per_hour
    return {
        "recipe": run.recipe_name(),
        "steps": last["step"],
        **({"skipped_updates": skipped, "learnt_steps": learnt} if skipped else {}),
        "rollouts": last["rollouts"],
        "generated_tokens": last["generated_tokens"],
        "gpu_hours": hours if "peak_vram_gib" in last else 0.0,
        **({"cost_usd": hours * price} if price else {}),
        "reward_first": first["reward_mean"],
        "reward_last": last["reward_mean"],
        **ended,
        "adapter_sha256": files.file_sha256(run.adapter / "adapter_model.safetensors"),
    }
