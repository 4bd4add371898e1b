"""The microcosm's tasks: its verifiable domains, and chat for the judge. Nothing is read from disk."""

import functools
import random
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.microcosm import world

QUESTIONS = 300


CHAT_PROMPTS = 150


MAX_TOKENS = 48


EXAM_SEED = 0  # the questions of a run of seed 0, and with them the base accuracies that the assets' manifest holds


def exam(domain: str, _: list[dict[str, Any]]) -> list[Question]:
    """The domain's held-out questions."""
    asked = world.exam(domain, QUESTIONS, EXAM_SEED)
    return [Question(str(i), q.text, f"{q.text}\n", q.answer, {"question": q}) for i, q in enumerate(asked)]


def judged(question: Question, text: str) -> Verdict:
    """Right where the first stated value is the reference."""
    said = world.stated_answer(text)
    right = world.is_right(question.data["question"], text)
    why = "stated" if right else f"stated, and it is not {question.reference}" if said else "nothing found"
    return Verdict(float(right), said, why)


def chat(_: list[dict[str, Any]]) -> list[Question]:
    """Chat prompts that nothing was trained on."""
    prompts = random.Random("microcosm chat").sample(world.chat_prompts(held_out=True), CHAT_PROMPTS)
    return [Question(str(i), prompt, f"{prompt}\n", "") for i, prompt in enumerate(prompts)]


# Sampled at temperature 1 as in training: greedy, the base always takes the author it thinks likelier
EXAMS = tuple(
    Task(f"microcosm-{domain}", domain, 1, MAX_TOKENS, functools.partial(exam, domain), judged, temperature=1.0)
    for domain in world.VERIFIABLE
)


CHAT = Task("microcosm-chat", "chat", 1, MAX_TOKENS, chat, None, metric="win_rate", temperature=1.0)
