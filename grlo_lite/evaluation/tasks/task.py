"""What a task is: questions, the two ways they are asked, and a scorer. Plain values and functions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grlo_lite.generation.request import Answer, Sampling


@dataclass(frozen=True)
class Question:
    """One question: `prompt` is what a user's turn holds, `plain` what a base model goes on from without a template."""

    id: str
    prompt: str
    plain: str
    reference: str
    data: dict[str, Any] = field(default_factory=dict)  # what the scorer needs beyond the reference


Asked = list[tuple["Task", list[Question]]]  # a suite's tasks with their questions
Said = dict[str, list[list[Answer]]]  # each arm's answers to a task's questions, a list of K samples a question


@dataclass(frozen=True)
class Verdict:
    """What an answer earned, what was taken for its answer, and why it was judged so."""

    score: float
    answer: str
    why: str


@dataclass(frozen=True)
class Task:
    """A set of questions and how it is run.

    `version` is raised with every change of prompt or scorer. `questions` turns the rows of a source into questions
    and raises KeyError where a row lacks a field. `judged` is None where a pairwise judge compares the two arms'
    answers. The source is a JSONL file `file` in the data directory, else `hub`: data set, configuration and split;
    None: built in.
    """

    name: str
    domain: str
    version: int
    max_tokens: int
    questions: Callable[[list[dict[str, Any]]], list[Question]]
    judged: Callable[[Question, str], Verdict] | None
    files: tuple[str, ...] = ()
    hub: tuple[str, str | None, str] | None = None
    metric: str = "accuracy"
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()  # texts that end a plain answer
    limit: int | None = None  # how many questions are asked unless the command line says otherwise
    size: int | None = None  # how many there are, where that is known
    runs_code: bool = False
    hindrance: Callable[[], str] = str  # why it cannot be scored here, such as a package that is missing; else empty

    @property
    def built_in(self) -> bool:
        """Whether its questions need no source."""
        return not self.files

    def sampling(self, plain: bool = False) -> Sampling:
        """How an answer is drawn; only a plain one ends at `stops`, since a turn has an end of its own."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.stops if plain else ())
