"""Takes the pages' and the API's questions to the model: one at a time from each page, no more often than allowed."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import gradio as gr

from grlo_lite.app.comparison.comparison import Comparison
from grlo_lite.app.comparison.values import Progress, Refused, Reply, Settings, Turn
from grlo_lite.app.server import RateLimit

MOST_SESSIONS = 1000  # beyond it, the page that was quiet longest is forgotten


MOST_AT_ONCE = 8  # questions of one address, the ones that wait included


@dataclass
class Round:
    """A blind question: which arm each side is, and the answers. It is voted on once."""

    question: str
    adapter: str
    settings: Settings
    arms: dict[str, str]  # by side, A or B
    replies: dict[str, Reply] = field(default_factory=dict)  # by arm, once both have ended
    vote: str | None = None


@dataclass
class Session:
    """One open page. `stop` is there while it waits for an answer; setting it ends the answer where it is."""

    turns: list[Turn] = field(default_factory=list)
    seed: int = 0  # of the newest answers, which Regenerate goes on from
    blind: Round | None = None
    stop: threading.Event | None = None

    def halt(self) -> None:
        if stop := self.stop:
            stop.set()


class Desk:
    """The comparison behind the page, and who is at the page."""

    def __init__(self, comparison: Comparison, rate: RateLimit):
        self.comparison, self.rate = comparison, rate
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._asking: Counter[str] = Counter()
        self._lock = threading.Lock()

    def session(self, request: gr.Request) -> Session:
        """The session of the page that a Gradio request comes from."""
        name = str(request.session_hash)
        with self._lock:
            session = self._sessions.setdefault(name, Session())
            self._sessions.move_to_end(name)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return session

    def halt(self, request: gr.Request) -> None:
        """Ends the answer that the page waits for, where it is."""
        self.session(request).halt()

    def answers(
        self, session: Session, turns: list[Turn], question: str, adapter: str, settings: Settings, request: gr.Request
    ) -> Iterator[Progress]:
        """What `Comparison.stream` gives. Raises Refused as it does, and where a page or an address asks too much."""
        address = request.client.host if request.client else ""
        stop = threading.Event()
        with self._lock:
            if session.stop is not None:
                raise Refused("this page still waits for an answer; stop it first")
            if self._asking[address] >= MOST_AT_ONCE:
                raise Refused(f"{MOST_AT_ONCE} questions of yours are waiting already; ask again in a moment")
            session.stop = stop
            self._asking[address] += 1
        try:
            self.rate.take(address)
            yield from self.comparison.stream(turns, question, adapter, settings, stop)
        finally:
            stop.set()
            with self._lock:
                session.stop = None
                self._asking[address] -= 1
                if not self._asking[address]:
                    del self._asking[address]
