"""The tab on which base and tuned answer the same questions, turn by turn, named."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from grlo_lite.app import components
from grlo_lite.app.comparison.values import Progress, Refused, Turn
from grlo_lite.app.components import Shared
from grlo_lite.app.rendering import NAMES, caption
from grlo_lite.app.sessions import Session
from grlo_lite.evaluation.results import ARMS
from grlo_lite.reporting.html import note


@dataclass(frozen=True)
class Asked:
    """A question to an adapter with the settings' values, and a seed in the place of theirs."""

    question: str
    adapter: str
    settings: tuple[Any, ...]
    seed: int | None = None


class CompareTab:
    """Builds the tab where Gradio's blocks are being built, and answers what is pressed on it."""

    def __init__(self, shared: Shared):
        self.desk, adapter, settings = shared.desk, shared.adapter, shared.settings
        captions, chats = components.columns("compare", [NAMES[arm] for arm in ARMS])
        status = components.html(elem_id="compare-status")
        question = components.question_box("compare")
        with gr.Row(elem_classes="buttons"):
            ask = gr.Button("Ask", variant="primary", elem_id="compare-ask")
            stop = gr.Button("Stop", interactive=False, elem_id="compare-stop")
            again = gr.Button("Regenerate", interactive=False, elem_id="compare-again")
            clear = gr.Button("Clear", elem_id="compare-clear")
        components.examples(shared.examples, question)
        outputs = [*captions, *chats, status, question, ask, stop, again]
        gr.on([ask.click, question.submit], self.ask, [question, adapter, *settings], outputs, **components.STREAMED)
        again.click(self.regenerate, [adapter, *settings], outputs, **components.STREAMED)
        stop.click(self.desk.halt, **components.AT_ONCE)
        clear.click(self.clear, None, outputs, **components.AT_ONCE)

    def ask(self, request: gr.Request, question: str, adapter: str, *settings: Any) -> Iterator[list[Any]]:
        session = self.desk.session(request)
        yield from self._answered(session, session.turns, Asked(question, adapter, settings), request)

    def regenerate(self, request: gr.Request, adapter: str, *settings: Any) -> Iterator[list[Any]]:
        """The newest question once more, with the next seed; its answers stay until the new ones are whole."""
        session = self.desk.session(request)
        if session.turns:
            *earlier, last = session.turns
            asked = Asked(last.question, adapter, settings, seed=(session.seed + 1) % 2**32)
            yield from self._answered(session, earlier, asked, request)

    def clear(self, request: gr.Request) -> list[Any]:
        session = self.desk.session(request)
        session.halt()
        session.turns = []
        return self._shown([])

    def _answered(
        self, session: Session, earlier: list[Turn], asked: Asked, request: gr.Request
    ) -> Iterator[list[Any]]:
        """The answers to a question after the `earlier` turns, which become the conversation when they are whole."""
        turns, earlier, state = session.turns, list(earlier), None
        try:
            wanted = components.settings(asked.settings)
            wanted = wanted if asked.seed is None else replace(wanted, seed=asked.seed)
            for state in self.desk.answers(session, earlier, asked.question, asked.adapter, wanted, request):
                if session.turns is turns:  # else it was cleared meanwhile
                    yield self._shown(earlier, asked.question, state)
        except Refused as refused:
            yield self._shown(session.turns, said=note(str(refused), "refused"))
            return
        assert state is not None
        if not any(reply.tokens for reply in state.replies.values()):
            yield self._shown(session.turns, said=note("neither said anything"))
        elif session.turns is turns:
            session.turns = [*earlier, Turn(asked.question, {arm: reply.text for arm, reply in state.replies.items()})]
            session.seed = wanted.seed
            yield self._shown(session.turns, None, state)
        else:  # Gradio shows the last of these states again when it has them all
            yield self._shown(session.turns)

    def _shown(
        self, turns: list[Turn], asked: str | None = None, state: Progress | None = None, said: str = ""
    ) -> list[Any]:
        """What each output shows: `asked` is the question that is being answered, None where none is."""
        busy, replies = asked is not None, state.replies if state else {}
        waiting = f"{state.ahead} before you" if state and state.ahead else ""
        return [
            *(caption(NAMES[arm], replies.get(arm)) for arm in ARMS),
            *(components.conversation(turns, arm, asked, replies.get(arm)) for arm in ARMS),
            said or note(waiting or (state.note if state else "")),
            "" if state and not busy else gr.skip(),  # the question is taken out of its box once it is answered
            gr.Button(interactive=not busy),
            gr.Button(interactive=busy),
            gr.Button(interactive=not busy and bool(turns)),
        ]
