"""The microcosm's tasks: its verifiable domains, and chat for the judge. Nothing is read from disk."""

import random
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.microcosm import world

QUESTIONS = 300


CHAT_PROMPTS = 150


MAX_TOKENS = 48


EXAM_SEED = 0  # the questions of a run of seed 0, and with them the base accuracies that the assets' manifest holds


def exams(questions: int = QUESTIONS, seed: int = EXAM_SEED, max_tokens: int = MAX_TOKENS) -> tuple[Task, ...]:
    """A task for each verifiable domain, with so many of its held-out questions.

    Sampled at temperature 1 as in training: greedy, the base always takes the author it thinks likelier.
    """

    def exam(domain: str) -> Task:
        def asked(_: list[dict[str, Any]]) -> list[Question]:
            found = world.exam(domain, questions, seed)
            return [Question(str(i), q.text, f"{q.text}\n", q.answer, {"question": q}) for i, q in enumerate(found)]

        return Task(f"microcosm-{domain}", domain, 1, max_tokens, asked, judged, temperature=1.0, size=questions)

    return tuple(exam(domain) for domain in world.VERIFIABLE)


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


CHAT = Task("microcosm-chat", "chat", 1, MAX_TOKENS, chat, None, metric="win_rate", temperature=1.0, size=CHAT_PROMPTS)
