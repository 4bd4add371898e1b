"""The tab on which the sides have no names until the reader has chosen one."""

import datetime
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from grlo_lite.app import components
from grlo_lite.app.comparison.values import Progress, Refused
from grlo_lite.app.components import Shared
from grlo_lite.app.rendering import NAMES, caption
from grlo_lite.app.sessions import Round, Session
from grlo_lite.app.votes import VERDICTS
from grlo_lite.evaluation.results import ARMS
from grlo_lite.reporting.html import note

SIDES = ("A", "B")


class BlindTab:
    """Builds the tab where Gradio's blocks are being built, and answers what is pressed on it."""

    def __init__(self, shared: Shared):
        self.desk, self.votes, self.base = shared.desk, shared.votes, shared.base
        self.random, self.one_vote = random.SystemRandom(), threading.Lock()
        captions, chats = components.columns("blind", list(SIDES))
        status = components.html(elem_id="blind-status")
        with gr.Row(elem_classes="buttons votes"):
            verdicts = [
                gr.Button(said, interactive=False, elem_id=f"vote-{key.replace(' ', '-')}")
                for key, said in VERDICTS.items()
            ]
        question = components.question_box("blind")
        with gr.Row(elem_classes="buttons"):
            ask = gr.Button("Ask", variant="primary", elem_id="blind-ask")
            stop = gr.Button("Stop", interactive=False, elem_id="blind-stop")
            again = gr.Button("New round", elem_id="blind-new")
        components.examples(shared.examples, question)
        outputs = [*captions, *chats, status, question, ask, stop, *verdicts]
        inputs = [question, shared.adapter, *shared.settings]
        gr.on([ask.click, question.submit], self.ask, inputs, outputs, **components.STREAMED)
        stop.click(self.desk.halt, **components.AT_ONCE)
        again.click(self.new_round, None, outputs, **components.AT_ONCE)
        for key, button in zip(VERDICTS, verdicts, strict=True):
            button.click(self._voting(key), None, outputs, **components.AT_ONCE)

    def ask(self, request: gr.Request, question: str, adapter: str, *settings: Any) -> Iterator[list[Any]]:
        """Begins a new round; the one before comes back where the question is refused."""
        session = self.desk.session(request)
        before, begun, state = session.blind, None, None
        try:
            # A seed of its own, or the same question would have the answers that Compare showed by name
            wanted = replace(components.settings(settings), seed=self.random.randrange(2**32))
            for state in self.desk.answers(session, [], question, adapter, wanted, request):
                if begun is None:
                    sides: dict[str, str] = dict(zip(SIDES, self.random.sample(ARMS, 2), strict=True))
                    begun = session.blind = Round(question, adapter, wanted, sides)
                if session.blind is begun:  # else another round was begun meanwhile
                    yield self._shown(session, state)
            if begun is not None and state is not None:
                begun.replies = state.replies
            yield self._shown(session)
        except Refused as refused:
            if session.blind is begun:
                session.blind = before
            yield self._shown(session, said=note(str(refused), "refused"))

    def new_round(self, request: gr.Request) -> list[Any]:
        session = self.desk.session(request)
        session.halt()
        session.blind = None
        return self._shown(session)

    def _voting(self, verdict: str) -> Callable[..., list[Any]]:
        def vote(request: gr.Request) -> list[Any]:
            session = self.desk.session(request)
            with self.one_vote:
                asked = session.blind
                if asked is None or not _can_be_voted_on(asked):
                    said = "" if asked and asked.vote else "there is nothing to vote on any more; this did not count"
                    return self._shown(session, said=note(said, "refused"))
                try:
                    self.votes.append(self._record(asked, verdict))
                    asked.vote = verdict
                except OSError as error:
                    said = f"the vote could not be saved and does not count: {error.strerror or error}"
                    return self._shown(session, said=note(said, "refused"))
            return self._shown(session)

        return vote

    def _record(self, asked: Round, verdict: str) -> dict[str, Any]:
        """A line of the votes' file."""
        return {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "winner": asked.arms.get(verdict, verdict),
            "vote": verdict,
            "sides": asked.arms,
            "question": asked.question,
            "answers": {arm: reply.text for arm, reply in asked.replies.items()},
            "ended": {arm: reply.ended for arm, reply in asked.replies.items()},
            "adapter": asked.adapter,
            "adapter_sha256": self.desk.comparison.adapters[asked.adapter].sha256,
            "base": self.base,
            "settings": asdict(asked.settings),
        }

    def _shown(self, session: Session, state: Progress | None = None, said: str = "") -> list[Any]:
        """What each output shows; `state` is the answer's that is under way."""
        asked, busy = session.blind, state is not None
        replies = state.replies if state else asked.replies if asked else {}
        arms = asked.arms if asked else {}
        voted = asked.vote if asked else None
        if voted:
            named = ", ".join(f"{side} was the {NAMES[arm].lower()} model" for side, arm in arms.items())
            said = said or note(f"{VERDICTS[voted]}: saved. {named}.")
        elif state and state.ahead:
            said = note(f"{state.ahead} before you")
        elif asked and not busy and replies and not _can_be_voted_on(asked):
            said = said or note("stopped, so there is no vote on it; ask again")
        question = asked.question if asked else None
        return [
            *(
                caption(f"{side}: {NAMES[arms[side]]}", replies.get(arms[side])) if voted else caption(side, None)
                for side in SIDES
            ),
            *(components.conversation([], "", question, replies.get(arms.get(side, ""))) for side in SIDES),
            said,
            "" if replies and not busy and not said else gr.skip(),
            gr.Button(interactive=not busy),
            gr.Button(interactive=busy),
            *([gr.Button(interactive=not busy and asked is not None and _can_be_voted_on(asked))] * len(VERDICTS)),
        ]


def _can_be_voted_on(asked: Round) -> bool:
    """A round that has ended by itself, in which somebody spoke, and which was not voted on yet."""
    replies = asked.replies.values()
    return asked.vote is None and any(r.tokens for r in replies) and all(r.ended != "stopped" for r in replies)
