"""Right or wrong by the graders that evaluation uses: one table, a row a grader."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks import choices, code, mathematics
from grlo_lite.evaluation.tasks.task import Question
from grlo_lite.grading import sandbox
from grlo_lite.grading.extraction import stated_text
from grlo_lite.microcosm import world
from grlo_lite.models.chat_template import Messages, Prompt
from grlo_lite.recipe.schema import Reward
from grlo_lite.wording import cut


@dataclass(frozen=True)
class Grader:
    """Whether a prompt can be graded (why not, empty where it can), and the score of an answer to it."""

    lacks: Callable[[Prompt], str]
    score: Callable[[Prompt, str], float]
    runs_code: bool = False
    hindrance: Callable[[], str] = str  # why nothing can be graded here, such as a package that is missing


def no_answer(row: Prompt) -> str:
    return "" if row.answer is not None else "no right answer"


def mathematics_score(row: Prompt, text: str) -> float:
    """By GSM8K's grader, which takes the last number, where the answer stands behind ####; else by MATH's."""
    is_gsm8k = "####" in str(row.columns.get("answer")) or "gsm8k" in str(row.columns.get("data_source")).lower()
    judged = mathematics.judged_number if is_gsm8k else mathematics.judged_expression
    return judged(Question("", "", "", row.answer or ""), text).score


def no_letter(row: Prompt) -> str:
    fits = row.answer is not None and len(row.answer) == 1 and row.answer in choices.LETTERS
    return no_answer(row) or ("" if fits else f"an answer that is no letter from A to J ({cut(str(row.answer))})")


def choice_score(row: Prompt, text: str) -> float:
    """The options are as many as the row's `options` or `choices`; where it has none, A to J."""
    options = row.columns.get("options") or row.columns.get("choices")
    letters = choices.LETTERS[: len(options)] if isinstance(options, list) else choices.LETTERS
    return choices.judged(Question("", "", "", row.answer or "", {"letters": letters}), text).score


def no_tests(row: Prompt) -> str:
    return "" if code_question(row) else "no tests (HumanEval's `test` and `entry_point`, or MBPP's `test_list`)"


def code_question(row: Prompt) -> Question | None:
    """A row of HumanEval's or MBPP's shape as the question that evaluation asks; None where it has no tests."""
    asked, columns = row[-1]["content"], {"canonical_solution": "", "code": ""} | row.columns
    if columns.get("test") and columns.get("entry_point"):
        begun = columns.get("prompt")  # as the tests know it, without the recipe's request behind it
        return code.humaneval([columns | {"task_id": "", "prompt": begun if isinstance(begun, str) else asked}])[0]
    return code.mbpp([{"text": asked} | columns | {"task_id": 11}])[0] if columns.get("test_list") else None


def microcosm_score(row: Prompt, text: str) -> float:
    return float(world.states(text, row.answer or ""))


def not_of(domain: str) -> Callable[[Prompt], str]:
    def lacks(row: Prompt) -> str:
        return no_answer(row) or ("" if row.columns.get("domain") == domain else f"no question of {domain}")

    return lacks


def not_reasoning_gym(row: Prompt) -> str:
    metadata = row.columns.get("metadata")
    named = isinstance(metadata, dict) and "source_dataset" in metadata
    return "" if named else "no metadata of reasoning-gym; its questions come by prompts.source=reasoning-gym:TASK"


def reasoning_gym_score(row: Prompt, text: str) -> float:
    """By the task's own checker, whose scores may lie between 0 and 1."""
    import reasoning_gym  # pyright: ignore[reportMissingImports]

    made = reasoning_gym.create_dataset(row.columns["metadata"]["source_dataset"], size=1, seed=0)
    return float(made.score_answer(stated_text(text), row.columns))


def no_reasoning_gym() -> str:
    missing = find_spec("reasoning_gym") is None
    return "it needs reasoning-gym: pip install 'grlo-lite[reasoning-gym]'" if missing else ""


def code_score(row: Prompt, text: str, seconds: float = code.SECONDS) -> float:
    question = code_question(row)
    assert question is not None
    return float(sandbox.passes(code.program(question, text)[0], seconds).passed)


# The graders by `reward.verifiable`; a name here is a name in the recipe's schema
GRADERS: dict[str, Grader] = {
    "mathematics": Grader(no_answer, mathematics_score, hindrance=mathematics.unavailable),
    "choice": Grader(no_letter, choice_score),
    "code": Grader(no_tests, code_score, runs_code=True, hindrance=sandbox.unavailable),
    "microcosm": Grader(no_answer, microcosm_score),
    **{f"microcosm-{domain}": Grader(not_of(domain), microcosm_score) for domain in world.VERIFIABLE},
    "reasoning-gym": Grader(not_reasoning_gym, reasoning_gym_score, hindrance=no_reasoning_gym),
}


def grader_of(row: Messages, reward: Reward) -> int | None:
    """Which of the recipe's graders grades answers to a prompt: the first that can; None where none can."""
    if not isinstance(row, Prompt):
        return None
    able = (number for number, one in enumerate(reward.verifiable) if not GRADERS[one.grader].lacks(row))
    return next(able, None)


def scores(number: int, reward: Reward, conversations: list[Messages], **_: Any) -> np.ndarray:
    """What the recipe's grader of this number gives, shape (B,): NaN where another one grades, or none can.

    Programs run side by side, as many as there are cores, each for `reward.code_seconds` at most.
    """
    name = reward.verifiable[number].grader
    mine = [grader_of(c, reward) == number for c in conversations]

    def score(conversation: Messages) -> float:
        assert isinstance(conversation, Prompt)
        text = conversation[-1]["content"]
        row = Prompt(conversation[:-1], conversation.columns, conversation.answer, conversation.where)
        if GRADERS[name].runs_code:
            return code_score(row, text, reward.code_seconds)
        return GRADERS[name].score(row, text)

    asked = [c for c, is_mine in zip(conversations, mine, strict=True) if is_mine]
    if GRADERS[name].runs_code:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            given = list(pool.map(score, asked))
    else:
        given = [score(conversation) for conversation in asked]
    found = np.full(len(conversations), np.nan)
    found[np.array(mine, dtype=bool)] = given
    return found


def require_usable(reward: Reward, code_allowed: bool) -> None:
    """Raises BadInput where one of the recipe's graders cannot work here, or would run code without leave."""
    for one in reward.verifiable:
        grader = GRADERS[one.grader]
        if grader.runs_code and not code_allowed:
            raise BadInput(
                f"reward.verifiable={one.grader} runs code that the model wrote; allow that, in the sandbox, with "
                "--allow-code-execution"
            )
        if why := grader.hindrance():
            raise BadInput(f"reward.verifiable={one.grader}: {why}")


def require_gradable(row: Messages, reward: Reward) -> None:
    """Raises BadInput, naming where a prompt stands, where no grader can grade answers to it."""
    if grader_of(row, reward) is not None:
        return
    where = row.where if isinstance(row, Prompt) else "a prompt"
    why = "; ".join(
        f"{one.grader} finds {GRADERS[one.grader].lacks(row) if isinstance(row, Prompt) else 'no columns'}"
        for one in reward.verifiable
    )
    raise BadInput(
        f"{where} ({row[-1]['content'][:60]!r}) cannot be graded by reward.verifiable: {why}; name its column in "
        "prompts.answer, or leave the row out"
    )
