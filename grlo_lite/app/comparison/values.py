"""What a request and its replies are made of."""

import math
from dataclasses import dataclass, field


class Refused(Exception):
    """A request that cannot be answered; the message says why and what to change."""


@dataclass(frozen=True)
class Adapter:
    """One run's adapter: what it is called here, its name in the loaded model, and the hash of its weights."""

    label: str
    peft_name: str
    sha256: str


@dataclass(frozen=True)
class Settings:
    """How both arms answer. Temperature 0 is greedy; `plain_base` gives the base arm the text without the template."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    system: str = ""
    plain_base: bool = False
    score: bool = False

    def check(self) -> None:
        """Raises Refused where a value is of another kind or outside its range; not a number is outside of all."""
        kinds = {"max_tokens": int, "temperature": (int, float), "top_p": (int, float), "seed": int, "system": str}
        kinds |= {"plain_base": bool, "score": bool}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise Refused(f"{name} is {value!r}, which is of another kind")
        ranges = {"max_tokens": (1, math.inf), "temperature": (0, 2), "top_p": (1e-6, 1), "seed": (0, 2**32 - 1)}
        for name, (low, high) in ranges.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise Refused(f"{name} is {value}; it must be from {low:g} to {high:g}")


@dataclass(frozen=True)
class Turn:
    """A question and each arm's answer to it."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """One arm's answer so far. `ended` is None while it grows, then `end of turn`, `length` or `stopped`."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str | None = None
    score: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """The state of a request: how many are before it, each arm's reply so far, and what there is to say about it."""

    ahead: int
    replies: dict[str, Reply] = field(default_factory=dict)
    note: str = ""
