"""What the doctor looks at where a reward comes of functions or graders: whether each can work here."""

from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS, Check
from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Messages
from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards import python_rewards, sources, verifiable


def source_checks(reward: Reward) -> list[Check]:
    """A check a function and a grader; and that there is no reward model, where there is none."""
    checks = [] if reward.judges else [Check("reward model", NOT_APPLICABLE, "none: rewards come of what follows")]
    for one in reward.python:
        try:
            source = python_rewards.PythonSource(one.function, reward.python_seconds)
        except BadInput as error:
            checks.append(Check(f"function {one.function}", FAIL, str(error), "mend the file or its name"))
            continue
        asks = ", ".join(sorted(source.required - set(python_rewards.OURS))) or "nothing but the completions"
        checks.append(Check(f"function {one.function}", PASS, f"is loaded; asks for {asks}"))
    for one in reward.verifiable:
        why = verifiable.GRADERS[one.grader].hindrance()
        checks.append(Check(f"grader {one.grader}", FAIL if why else PASS, why or "can grade here"))
    return checks


def columns_check(reward: Reward, rows: list[Messages]) -> list[Check]:
    """Whether each prompt has what the functions and graders ask for; no check where there are none."""
    if not reward.needs_columns:
        return []
    try:
        sources.require_rewards(reward, rows)
    except BadInput as error:
        return [Check("prompts with answers", FAIL, str(error), "name their column in prompts.answer")]
    return [Check("prompts with answers", PASS, f"all {len(rows):,} can be graded")]
