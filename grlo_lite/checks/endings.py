"""Whether the policy can end an answer, as the doctor has it."""

from typing import Any

from grlo_lite import prompts
from grlo_lite.checks.check import FAIL, PASS, Check
from grlo_lite.recipe.schema import Recipe


def endings_check(recipe: Recipe, policy: Any, rows: list[prompts.Messages]) -> Check:
    """How the untrained policy's answers to some of the run's own prompts end; it fails where none ever would."""
    from grlo_lite.models import endings

    asked = prompts.ordered(rows, endings.PROMPTS, recipe.seed)
    seen = endings.endings(policy, asked, recipe.rollout.max_tokens, recipe.rollout.temperature)
    status = FAIL if endings.cannot_end(seen, recipe) else PASS
    return Check("answers that end", status, endings.found(seen, recipe), endings.mend(seen, recipe))
