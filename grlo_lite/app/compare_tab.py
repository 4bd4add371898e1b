"""The tab on which base and tuned answer the same questions, turn by turn, named."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from grlo_lite.app import parts
from grlo_lite.app.desk import Desk, Session
from grlo_lite.app.rendering import NAMES, caption, note
from grlo_lite.compare import ARMS, Progress, Refused, Settings, Turn


class CompareTab:
    """Builds the tab where Gradio's blocks are being built, and answers what is pressed on it."""

    def __init__(self, desk: Desk, adapter: gr.Dropdown, settings: list[Any], examples: list[str]):
        self.desk = desk
        captions, chats = parts.columns("compare", [NAMES[arm] for arm in ARMS])
        status = parts.html(elem_id="compare-status")
        question = parts.question_box("compare")
        with gr.Row(elem_classes="buttons"):
            ask = gr.Button("Ask", variant="primary", elem_id="compare-ask")
            stop = gr.Button("Stop", interactive=False, elem_id="compare-stop")
            again = gr.Button("Regenerate", interactive=False, elem_id="compare-again")
            clear = gr.Button("Clear", elem_id="compare-clear")
        parts.examples(examples, question)
        outputs = [*captions, *chats, status, question, ask, stop, again]
        gr.on([ask.click, question.submit], self.ask, [question, adapter, *settings], outputs, **parts.STREAMED)
        again.click(self.regenerate, [adapter, *settings], outputs, **parts.STREAMED)
        stop.click(self.stop, **parts.AT_ONCE)
        clear.click(self.clear, None, outputs, **parts.AT_ONCE)

    def ask(self, request: gr.Request, question: str, adapter: str, *settings: Any) -> Iterator[list[Any]]:
        session = self.desk.session(request)
        try:
            yield from self._answered(session, question, adapter, parts.settings(*settings), request)
        except Refused as refused:
            yield self._shown(session, said=note(str(refused), "refused"))

    def regenerate(self, request: gr.Request, adapter: str, *settings: Any) -> Iterator[list[Any]]:
        """The newest question once more, with the next seed; the answers that were there come back if that fails."""
        session = self.desk.session(request)
        if not session.turns or session.stop:
            yield self._shown(session, said=note("there is nothing to answer again", "refused"))
            return
        turns, before = session.turns, session.turns.pop()
        try:
            wanted = replace(parts.settings(*settings), seed=(session.seed + 1) % 2**32)
            yield from self._answered(session, before.question, adapter, wanted, request)
        except Refused as refused:
            turns.append(before)
            yield self._shown(session, said=note(str(refused), "refused"))

    def stop(self, request: gr.Request) -> None:
        self.desk.session(request).halt()

    def clear(self, request: gr.Request) -> list[Any]:
        session = self.desk.session(request)
        session.halt()
        session.turns = []
        return self._shown(session)

    def _answered(
        self, session: Session, question: str, adapter: str, settings: Settings, request: gr.Request
    ) -> Iterator[list[Any]]:
        turns, state = session.turns, None
        for state in self.desk.answers(session, list(turns), question, adapter, settings, request):
            if session.turns is turns:  # else it was cleared meanwhile
                yield self._shown(session, question, state)
        assert state is not None
        turns.append(Turn(question, {arm: reply.text for arm, reply in state.replies.items()}))
        session.seed = settings.seed
        yield self._shown(session, None, state if session.turns is turns else None)

    def _shown(
        self, session: Session, asked: str | None = None, state: Progress | None = None, said: str = ""
    ) -> list[Any]:
        """What each output shows: `asked` is the question that is being answered, None where none is."""
        busy, replies = asked is not None, state.replies if state else {}
        waiting = f"{state.ahead} before you" if state and state.ahead else ""
        return [
            *(caption(NAMES[arm], replies.get(arm)) for arm in ARMS),
            *(parts.conversation(session.turns, arm, asked, replies.get(arm)) for arm in ARMS),
            said or note(waiting or (state.note if state else "")),
            "" if state and not busy else gr.skip(),  # the question is taken out of its box once it is answered
            gr.Button(interactive=not busy),
            gr.Button(interactive=busy),
            gr.Button(interactive=not busy and bool(session.turns)),
        ]
