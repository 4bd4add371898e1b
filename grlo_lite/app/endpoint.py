"""The function behind /compare, for gradio_client."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from grlo_lite.app.comparison.values import Refused, Settings, Turn
from grlo_lite.app.sessions import Desk, Session


def endpoint(desk: Desk) -> Any:
    """The function behind /compare, which gradio_client calls."""

    def compare(  # noqa: PLR0913 - Gradio makes the endpoint's parameters of this signature
        request: gr.Request,
        question: str,
        adapter: str = "",
        turns: list[dict[str, str]] | None = None,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        system: str = "",
        plain_base: bool = False,
        score: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Base and tuned answers to one question as they grow; the last state holds them whole.

        `adapter` is a label, the first one's where it is empty; `turns` are earlier ones, each with `question`,
        `base` and `tuned`; temperature 0 is greedy.
        """
        try:
            earlier = [Turn(t["question"], {"base": t["base"], "tuned": t["tuned"]}) for t in turns or []]
        except (KeyError, TypeError):
            raise gr.Error("turns are objects with question, base and tuned", print_exception=False) from None
        try:
            settings = Settings(max_tokens, temperature, top_p, seed, system, plain_base, score)
            adapter = adapter or next(iter(desk.comparison.adapters))
            for state in desk.answers(Session(), earlier, question, adapter, settings, request):
                replies = {arm: asdict(reply) for arm, reply in state.replies.items()}
                yield {"ahead": state.ahead, "note": state.note, **replies}
        except Refused as refused:
            raise gr.Error(str(refused), print_exception=False) from None

    return compare
