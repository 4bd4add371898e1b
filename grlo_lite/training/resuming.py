"""A resumed run's recipe, commits and checkpoint."""

from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.machine import processes
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir


def resumed_recipe(run: RunDir, named: str | None, overrides: list[str]) -> Recipe:
    """The run's own recipe; its budget alone may be changed, for nothing else could be changed and still be the same
    run.
    """
    changes = [override for override in overrides if not override.startswith("budget.")]
    if named or changes:
        raise BadInput(f"a resumed run keeps its recipe; leave out {named or changes[0]!r} (only budget.… may change)")
    recipe = recipes.load(str(run.recipe), overrides)
    if overrides:
        files.write_atomically(run.recipe, recipes.dumped(recipe))
    return _at_its_commits(recipe, run)


def _at_its_commits(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the Hub commits that the run began with in place of its models' revisions."""
    began_with = files.read_json(run.environment)
    commits = began_with.get("reward_model_commits") or {}

    def at_its_commit(judge: Any) -> Any:
        return judge.model_copy(update={"revision": commits.get(judge.name) or judge.revision})

    reward = at_its_commit(recipe.reward)
    kept = {
        "model.revision": began_with.get("model_commit") or recipe.model.revision,
        "reward.revision": reward.revision,
        "reward.heldout": at_its_commit(reward.heldout),
        "reward.models": tuple(map(at_its_commit, reward.models)),
    }
    return recipes.changed(recipe, kept)


def begin_or_resume(run: RunDir, facts: dict[str, Any]) -> Path | None:
    """Writes what is known before the first step, or, in a run that is resumed, finds the checkpoint to go on from.

    Raises BadInput where a resumed run's prompts or chat template are no longer those it began with.
    """
    began_with = processes.agreed(files.read_json(run.environment) if processes.is_main() else None)
    if "versions" not in began_with:
        if processes.is_main():
            files.write_json(run.environment, facts)
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
