"""What a run would do: recipe, plan and first prompt, nothing loaded."""

from pathlib import Path

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.planning import planner, recipe_cards, shown, this_machine
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe


def dry_run(recipe: Recipe, name: str, write_to: Path | None) -> int:
    """Prints the resolved recipe, the plan and the first prompt, as far as they can be had without the network."""
    from grlo_lite.models.chat_template import formatted, load_tokenizer

    path = names.policy_path(recipe)
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
            rows = prepared.prompt_rows(recipe, write_to).train
    except prompts.Unreachable as error:
        absent = str(error)
    print(f"\n{recipes.dumped(recipe)}")
    steps, rollout = recipe.budget.steps, recipe.rollout
    groups = rollout.batch // rollout.group_size
    print(f"plan: {steps} steps of {rollout.batch} rollouts ({groups} prompts × {rollout.group_size} completions),")
    print(f"at most {steps * rollout.batch * rollout.max_tokens:,} generated tokens\n")
    card = this_machine.seen_card() or recipe_cards.card_of(name)
    try:
        print(f"{shown.text(recipe, card, planner.plan(recipe, card))}\n")
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
