"""How answers are asked for, and what they are. Imports no torch: commands read it before they load anything."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Temperature 0 is greedy; `stops` are texts that end an answer and are not part of it."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One answer without its end-of-turn token; `truncated` where `max_tokens` ended it."""

    text: str
    tokens: int
    truncated: bool
