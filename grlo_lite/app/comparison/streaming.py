"""Replies as they grow: what the decoder tells, a token a row at a time."""

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from grlo_lite.app.comparison.values import Progress, Reply, Settings, Turn

SHOWN_EVERY = 0.05  # seconds between two states of a stream; a reader sees no more, and decoding costs time


@dataclass(frozen=True)
class Request:
    turns: list[Turn]
    question: str
    label: str
    adapter: str
    settings: Settings
    arms: tuple[str, ...]
    stop: threading.Event
    told: "queue.SimpleQueue[Progress | Exception | None]"


class Rows:
    """What each arm has said so far; its rows are in the order of the arms."""

    def __init__(self, tokenizer: Any, stop_ids: list[int], max_tokens: int, request: Request):
        self.tokenizer, self.max_tokens, self.request = tokenizer, max_tokens, request
        self.stop_ids = set(stop_ids)
        self.ids: dict[str, list[int]] = {arm: [] for arm in request.arms}
        self.ended: dict[str, str] = {}
        self.took: dict[str, float] = {}
        self.began = self.told_at = 0.0

    def begin(self) -> None:
        self.began = time.monotonic()

    def watch(self, rows: list[int], tokens: list[int]) -> list[int]:
        """Takes in a token of each row; once the request is stopped, all of them end."""
        now = time.monotonic()
        for arm, token in zip((self.request.arms[row] for row in rows), tokens, strict=True):
            if token in self.stop_ids:
                self.ended[arm] = "end of turn"
            else:
                self.ids[arm].append(token)
                if len(self.ids[arm]) == self.max_tokens:
                    self.ended[arm] = "length"
            self.took[arm] = now - self.began
        if now - self.told_at >= SHOWN_EVERY:
            self.told_at = now
            self.request.told.put(Progress(0, self._so_far()))
        return rows if self.request.stop.is_set() else []

    def replies(self) -> dict[str, Reply]:
        """The replies, ended; what neither stopped by itself nor reached its length was stopped."""
        for arm in self.request.arms:
            self.ended.setdefault(arm, "stopped")
        return self._so_far()

    def _so_far(self) -> dict[str, Reply]:
        return {
            arm: Reply(self._text(arm), len(ids), self.took.get(arm, 0.0), self.ended.get(arm))
            for arm, ids in self.ids.items()
        }

    def _text(self, arm: str) -> str:
        text = self.tokenizer.decode(self.ids[arm], skip_special_tokens=True)
        return text if arm in self.ended else text.rstrip("\ufffd")  # a character of which only some bytes are there
