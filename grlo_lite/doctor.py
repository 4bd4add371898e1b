"""Checks the machine and a recipe's models: `python -m grlo_lite.doctor [RECIPE] [section.key=value …]`.

Each check passes, fails with what to do, or does not apply. A reward model that is silently wrong trains a policy
without an error.
"""

import sys
from pathlib import Path

import numpy as np

from grlo_lite.checks import reward_model
from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS, Check, checks_table
from grlo_lite.checks.endings import endings_check
from grlo_lite.checks.four_bits import fidelity_check, policy_conversations
from grlo_lite.checks.machine import machine_checks
from grlo_lite.cli import command_line, parsed_with_recipe, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.models import loading as models
from grlo_lite.models.backends import place
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 0 where nothing failed, else 1."""
    parser = command_line("doctor", "Checks the machine and the reward model.")
    parser.add_argument(
        "--after-policy", action="store_true", help="load the policy first, to catch the forwards it patches"
    )
    parser.add_argument("--prompts", type=int, default=32, help="prompts for 4-bit against 16-bit; 0 leaves that out")
    arguments, named, overrides = parsed_with_recipe(parser, argv)
    recipe = recipes.load(named or "microcosm", overrides)
    checks = machine_checks(Path.cwd(), recipe.cpu_dtype) + diagnosis(recipe, arguments.after_policy, arguments.prompts)
    print(checks_table(checks))
    return int(any(check.status == FAIL for check in checks))


def diagnosis(recipe: Recipe, after_policy: bool, prompt_count: int) -> list[Check]:
    """The reward model's checks, by itself and beside the policy, how far 4 bits move its scores, and whether the
    policy can end an answer.
    """
    settle_libraries(offline=prepared.needs_no_hub(recipe))
    where = place(recipe)
    policy = models.load_policy(recipe, where) if after_policy else None
    judge = recipe.reward.judges[0]
    try:
        scorer = models.load_judge(recipe, judge, where.device)
    except BadInput as error:
        return [Check("one logit", FAIL, str(error), "choose another reward model")]
    pairs = reward_model.clear_pairs(judge.name)
    checks = [Check("one logit", PASS, type(scorer.model).__name__), *reward_model.reward_checks(scorer, pairs)]
    checks.append(reward_model.golden_check(judge.name, recipe.reward.quantization, scorer, reward_model.card_texts))
    if not prompt_count:
        return checks
    before = None if after_policy else reward_model.pair_scores(scorer, pairs)
    policy = policy or models.load_policy(recipe, where)
    checks.append(reward_model.unpatched_check(before, reward_model.pair_scores(scorer, pairs)))
    rows = prepared.prompt_rows(recipe).train
    checks.append(endings_check(recipe, policy, rows))
    conversations = policy_conversations(recipe, policy, rows, prompt_count)
    four_bit = scorer.score([c for group in conversations for c in group])
    del policy, scorer
    if recipe.reward.quantization == "none":
        return [*checks, Check("4-bit against 16-bit", NOT_APPLICABLE, "the recipe does not quantize its reward model")]
    whole = models.load_judge(recipe, judge.model_copy(update={"quantization": "none"}), where.device)
    sixteen_bit = whole.score([c for group in conversations for c in group])
    return [*checks, fidelity_check(np.array(four_bit), np.array(sixteen_bit), len(conversations[0]))]


if __name__ == "__main__":
    sys.exit(run_command(main))
