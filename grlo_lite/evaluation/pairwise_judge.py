"""Which of two answers to an open-ended prompt is better: a reward model's scores, or a model behind an endpoint.

A win is 1 where the tuned answer is better, 0 where the base's is, ½ where neither is.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.paired_statistics import length_controlled_win_rate, raw_win_rate
from grlo_lite.models.chat_template import Messages, with_answers

VERDICT_REQUEST = """Two assistants answered the same request. Judge which answer helps the person more: is it right, \
does it address what was asked, is it clear? Neither length nor the order in which the answers stand is a merit.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Reply with one letter and nothing else: A or B for the better answer, T for a tie."""


@dataclass(frozen=True)
class Preference:
    """Who won one prompt (1 tuned, 0 base, ½ neither), and by what."""

    win: float
    why: str


def by_reward(
    score: Callable[[list[Messages]], list[float]], prompts: list[str], base: list[str], tuned: list[str]
) -> list[Preference]:
    """The answer with the higher score of a reward model wins; `score` takes conversations."""
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    pairs = zip(score(with_answers(asked, base)), score(with_answers(asked, tuned)), strict=True)
    return [Preference((1 + np.sign(t - b)) / 2, f"reward {b:.3f} against {t:.3f}") for b, t in pairs]


def by_endpoint(url: str, model: str, prompts: list[str], base: list[str], tuned: list[str]) -> list[Preference]:
    """Asks a model behind an OpenAI-compatible endpoint twice a prompt, each answer once first; the mean counts.

    The key is read from OPENAI_API_KEY. A reply that names neither A, B nor T counts as a tie and says so. Raises
    BadInput where the endpoint cannot be reached or refuses.
    """
    preferences = []
    for prompt, one, other in zip(prompts, base, tuned, strict=True):
        forward = _asked(url, model, VERDICT_REQUEST.format(prompt=prompt, first=one, second=other))
        backward = _asked(url, model, VERDICT_REQUEST.format(prompt=prompt, first=other, second=one))
        win = ({"A": 0.0, "B": 1.0}.get(forward, 0.5) + {"A": 1.0, "B": 0.0}.get(backward, 0.5)) / 2
        preferences.append(Preference(win, f"base first: {forward}; tuned first: {backward}"))
    return preferences


def _asked(url: str, model: str, request: str) -> str:
    """The letter that the judge replied with, or `unreadable`."""
    content = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": request}]}
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    address = f"{url.rstrip('/')}/chat/completions"
    asked = urllib.request.Request(address, json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=300) as reply:
            said = json.load(reply)["choices"][0]["message"]["content"] or ""
    except (urllib.error.URLError, TimeoutError) as error:
        raise BadInput(
            f"--judge: {address} gave {error}; is it an OpenAI-compatible endpoint, and OPENAI_API_KEY set?"
        ) from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise BadInput(f"--judge: {address} did not reply as an OpenAI-compatible chat endpoint does") from None
    letter = re.fullmatch(r"\W*([ABT])\W*", said.strip().upper())
    return letter.group(1) if letter else "unreadable"


def comparison(preferences: list[Preference], base: list[str], tuned: list[str]) -> dict[str, Any]:
    """The judge's part of a task in evaluation.json: raw and length-controlled win rate of the tuned arm, and the
    lengths that they have to be read with. For two prompts or more.
    """
    wins_N = np.array([p.win for p in preferences])
    lengths = {arm: np.array([len(a) for a in answers]) for arm, answers in (("base", base), ("tuned", tuned))}
    return {
        "win_rate": asdict(raw_win_rate(wins_N)),
        "length_controlled_win_rate": asdict(length_controlled_win_rate(wins_N, lengths["tuned"] - lengths["base"])),
        "mean_characters": {arm: float(n.mean()) for arm, n in lengths.items()},
        "ties": float((wins_N == 0.5).mean()),
        "unreadable": sum("unreadable" in p.why for p in preferences),
    }
