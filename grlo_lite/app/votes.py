"""Votes: a line of JSON each, on the disk before anybody is told that they count; and what they come to."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grlo_lite.evaluation.paired_statistics import WinRate, raw_win_rate
from grlo_lite.rundir.files import flush

VERDICTS = {"A": "A is better", "B": "B is better", "tie": "Tie", "both bad": "Both are bad"}
WORTH = {"tuned": 1.0, "base": 0.0, "tie": 0.5, "both bad": 0.5}


class Votes:
    """The votes of one file, which any number of threads may append to and no one rewrites."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()

    def append(self, vote: dict[str, Any]) -> None:
        """Adds a vote; it is on the disk when this returns. Raises OSError where the disk does not take it."""
        line = json.dumps(vote, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            size = os.fstat(file).st_size
            try:
                torn = size and os.pread(file, 1, size - 1) != b"\n"  # what a crash left must not take this one along
                whole = b"\n" * bool(torn) + line
                if os.write(file, whole) != len(whole):
                    raise OSError(f"{self.path} took only a part of the vote; the disk may be full")
                os.fsync(file)
            except OSError:  # a vote of which somebody is told that it does not count must not
                os.ftruncate(file, size)
                raise
            finally:
                os.close(file)
            if new:
                flush(self.path.parent)

    def require_writable(self) -> None:
        """Raises OSError where votes could not be written; makes the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        existed = self.path.exists()
        os.close(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))
        if not existed:
            self.path.unlink()

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """The votes in the order they came, and how many lines are none."""
        votes, broken = [], 0
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                vote = json.loads(line)
                if vote["winner"] not in WORTH or not isinstance(vote["adapter_sha256"], str):
                    raise ValueError(vote)
                votes.append(vote)
            except (ValueError, KeyError, TypeError):
                broken += bool(line.strip())
        return votes, broken


@dataclass(frozen=True)
class Tally:
    """An adapter's votes. `win_rate` counts ties and both bad as half a win; None below two votes."""

    adapter: str
    sha256: str
    plain_base: bool  # the base was asked without the chat template, which is another comparison
    winners: Counter[str]
    win_rate: WinRate | None


def tallies(votes: Iterable[dict[str, Any]]) -> list[Tally]:
    """By the hash of the adapter's weights and how the base was asked, under the adapter's last name; the most voted
    on first.
    """
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for vote in votes:
        settings = vote.get("settings")
        plain_base = isinstance(settings, dict) and settings.get("plain_base") is True
        groups.setdefault((vote["adapter_sha256"], plain_base), []).append(vote)
    found = []
    for (sha256, plain_base), own in groups.items():
        rate = raw_win_rate(np.array([WORTH[vote["winner"]] for vote in own])) if len(own) > 1 else None
        name, winners = str(own[-1].get("adapter", sha256[:12])), Counter(str(v["winner"]) for v in own)
        found.append(Tally(name, sha256, plain_base, winners, rate))
    return sorted(found, key=lambda tally: -tally.winners.total())
