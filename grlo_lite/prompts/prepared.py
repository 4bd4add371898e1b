"""From a recipe to the rows of a run: read, cleaned, decontaminated, split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite import prompts
from grlo_lite.evaluation.tasks import suites
from grlo_lite.models.names import is_here, model_paths, policy_path
from grlo_lite.recipe.schema import Recipe


def needs_no_hub(recipe: Recipe) -> bool:
    """Whether all is local, or the Hub, which prompts are to come from, does not answer: then its cache has to do."""
    against = recipe.prompts.decontaminate.against if recipe.prompts.decontaminate.enabled else ()
    named = [*recipe.prompts.parts(), *against]
    if any(prompts.on_the_hub(place if isinstance(place, str) else place.source) for place in named):
        return not prompts.hub_answers()
    return all(map(is_here, model_paths(recipe)))


@dataclass(frozen=True)
class PromptRows:
    """A run's prompts: those to train on, those to measure on, and the content of contamination.json."""

    train: list[prompts.Messages]
    heldout: list[prompts.Messages]
    contamination: dict[str, Any]


def prompt_rows(recipe: Recipe, write_to: Path | None = None) -> PromptRows:
    """The recipe's prompts that are worth asking and no benchmark's, split."""
    from grlo_lite.models.chat_template import PLAIN_TEMPLATE, formatted, load_tokenizer

    wanted = recipe.prompts
    rows, notes = prompts.load(wanted.parts(), wanted.limit, recipe.seed)
    tokenizer = load_tokenizer(policy_path(recipe), recipe.model.revision)
    if tokenizer.chat_template == PLAIN_TEMPLATE:
        print(f"{recipe.model.name} has no chat template: prompts are written as plain text, User: … Assistant:")

    def token_count(messages: prompts.Messages) -> int:
        return len(tokenizer(formatted(tokenizer, messages), add_special_tokens=False)["input_ids"])

    rows, steps = prompts.cleaned(
        rows, token_count, wanted.max_tokens, wanted.overlong, wanted.near_duplicates, wanted.language
    )
    rows, contamination = _decontaminated(recipe, rows, steps)
    print("\n".join([*(f"prompts: {note}" for note in notes), prompts.steps_table(steps)]))
    print(prompts.verdict(contamination))
    if write_to:
        prompts.write(write_to, rows)
    train_rows, heldout_rows = prompts.split(rows, recipe.heldout_prompts, recipe.seed)
    print(f"prompts: {len(train_rows)} to train on, {len(heldout_rows)} held out", flush=True)
    return PromptRows(train_rows, heldout_rows, contamination)


def _decontaminated(
    recipe: Recipe, rows: list[prompts.Messages], steps: list[prompts.Step]
) -> tuple[list[prompts.Messages], dict[str, Any]]:
    """The rows that ask no question of the evaluation sets, and contamination.json's content; adds its step to the
    others. It lists every suite's set whose questions are not at hand, unless the run's own suite has them built in.
    """
    wanted, suite_sets = recipe.prompts.decontaminate, suites.question_sets()
    built_in = [task for task in suites.run_tasks(recipe) if task.built_in]
    if not wanted.enabled:
        evaluated = [task.name for task in built_in] or sorted(suite_sets)
        return rows, prompts.unchecked_report("prompts.decontaminate.enabled=false", evaluated)
    sets = [prompts.question_set(task.name, [q.prompt for q in task.questions([])]) for task in built_in]
    sets += prompts.question_sets(wanted.against, suite_sets, missing=not built_in)
    rows, step, report = prompts.decontaminated(rows, sets, wanted.ngram, wanted.similarity)
    steps.append(step)
    return rows, report
