"""Who waits for the model."""

import threading

from grlo_lite.app.comparison.values import Refused


class Line:
    """Those who wait for the model, in the order in which they came; the first of them has it."""

    def __init__(self, longest: int):
        self._tickets: list[object] = []
        self._longest = longest
        self._moved = threading.Condition()

    def join(self) -> object:
        """A place at the end. Raises Refused where `longest` are waiting already."""
        with self._moved:
            if len(self._tickets) > self._longest:
                raise Refused(f"{self._longest} questions are waiting already; ask again in a moment")
            ticket = object()
            self._tickets.append(ticket)
            return ticket

    def ahead(self, ticket: object, seconds: float) -> int:
        """How many are before this one, at once where none are, else after the line moved or `seconds` went by."""
        with self._moved:
            if before := self._tickets.index(ticket):
                self._moved.wait(seconds)
                before = self._tickets.index(ticket)
            return before

    def leave(self, ticket: object) -> None:
        with self._moved:
            self._tickets.remove(ticket)
            self._moved.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)
