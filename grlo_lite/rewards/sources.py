"""What may earn a completion its reward: one table of sources, each with a part of the score that is its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from grlo_lite.models.chat_template import Messages, Prompt
from grlo_lite.recipe.schema import Reward
from grlo_lite.rewards import python_rewards, verifiable

Judges = list[tuple[str, float, Any]]  # name, weight, reward model


@dataclass(frozen=True)
class Source:
    """One part of the score: its name in the metrics, its weight, and what it gives for a batch of conversations,
    shape (B,), NaN where it does not apply.
    """

    name: str
    weight: float
    scores: Callable[..., np.ndarray]


def reward_models(reward: Reward, judges: Judges) -> list[Source]:
    """A source for each loaded reward model."""

    def scored(model: Any, conversations: list[Messages], **_: Any) -> np.ndarray:
        return np.array(model.score(conversations))

    return [Source(name, weight, partial(scored, model)) for name, weight, model in judges]


def functions(reward: Reward, judges: Judges) -> list[Source]:
    """A source for each Python function. Raises BadInput where one cannot be loaded."""
    return [
        Source(one.function, one.weight, python_rewards.PythonSource(one.function, reward.python_seconds).scores)
        for one in reward.python
    ]


def graders(reward: Reward, judges: Judges) -> list[Source]:
    """A source for each grader; a conversation is graded by the first that can."""
    return [
        Source(one.grader, one.weight, partial(verifiable.scores, number, reward))
        for number, one in enumerate(reward.verifiable)
    ]


# The sources by the recipe's key
SOURCES: dict[str, Callable[[Reward, Judges], list[Source]]] = {
    "models": reward_models,
    "python": functions,
    "verifiable": graders,
}


def sources(reward: Reward, judges: Judges) -> list[Source]:
    """All sources that a recipe names. Raises BadInput where one cannot be had."""
    return [source for made in SOURCES.values() for source in made(reward, judges)]


def require_usable(reward: Reward, code_allowed: bool) -> None:
    """Raises BadInput where a source cannot work here: a function or a package is missing, or code must not be run."""
    verifiable.require_usable(reward, code_allowed)
    functions(reward, [])


def require_rewards(reward: Reward, rows: list[Messages]) -> None:
    """Raises BadInput where a source could not score answers to one of these prompts, naming where that stands: it
    lacks its answer, or a column that a function asks for.
    """
    for one in reward.python:
        source = python_rewards.PythonSource(one.function, reward.python_seconds)
        source.require_columns([row for row in rows if isinstance(row, Prompt)])
    if reward.verifiable:
        for row in rows:
            verifiable.require_gradable(row, reward)
