"""What the tabs have in common: columns, question boxes, settings, and how Gradio is to call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grlo_lite.app.comparison.values import Refused, Reply, Settings, Turn
from grlo_lite.app.rendering import LATEX, caption, markdown
from grlo_lite.app.sessions import Desk
from grlo_lite.app.votes import Votes


@dataclass(frozen=True)
class Shared:
    """What a tab is built from: the page and the tab itself, the model behind them, the runs, what all tabs go by."""

    page: gr.Blocks
    tab: gr.Tab
    desk: Desk
    votes: Votes
    base: str  # the base model's name
    runs: dict[str, Path]  # the adapters' run directories by label
    adapter: gr.Dropdown
    settings: list[Any]  # the components of the settings' panel
    examples: list[str]  # prompts of the run


# Any number of visitors at once: who waits for the model waits in Comparison's line, which can say for how many
STREAMED: dict[str, Any] = {
    "concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "once",
}  # fmt: skip


# Not behind Gradio's queue, where Stop would wait for what it is to stop
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def html(value: str = "", elem_id: str | None = None) -> gr.Markdown:
    """HTML of the page's own making. Gradio's HTML component evaluates strings, which the page's policy forbids."""
    return gr.Markdown(value, elem_id=elem_id, sanitize_html=False, latex_delimiters=[])


def columns(tab: str, names: list[str]) -> tuple[list[gr.Markdown], list[gr.Chatbot]]:
    """Two answers side by side, one below the other where the screen is narrow, each under its caption."""
    captions, chats = [], []
    with gr.Row(elem_classes="answers"):
        for name in names:
            with gr.Column(min_width=300):
                captions.append(html(caption(name, None), elem_id=f"{tab}-caption-{name.lower()}"))
                chats.append(_chat(f"{tab}-{name.lower()}", name))
    return captions, chats


def _chat(elem_id: str, name: str) -> gr.Chatbot:
    look = {"layout": "panel", "show_label": False, "buttons": ["copy"], "feedback_options": None}
    text = {"latex_delimiters": LATEX, "allow_tags": False, "placeholder": f"{name} answers here"}
    return gr.Chatbot(elem_id=elem_id, elem_classes="answer", label=name, height="var(--answer-height)", **look, **text)


def question_box(tab: str) -> gr.Textbox:
    return gr.Textbox(
        label="Question", placeholder="Ask both at once; Enter asks, Shift+Enter begins a new line", lines=2,
        max_lines=8, elem_id=f"{tab}-question",
    )  # fmt: skip


def examples(prompts: list[str], question: gr.Textbox) -> None:
    """Prompts that a click puts into the box."""
    if prompts:
        gr.Examples([[prompt] for prompt in prompts], [question], label="From the run", api_visibility="private")


def settings_panel(longest: int, can_score: bool) -> list[Any]:
    """The components whose values `settings` takes."""
    with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
        with gr.Column(min_width=280):
            temperature = gr.Slider(0, 2, 1.0, step=0.05, label="Temperature", info="0: always the likeliest token")
            top_p = gr.Slider(0.05, 1, 1.0, step=0.05, label="Top-p")
            tokens = gr.Slider(1, longest, min(256, longest), step=1, label="Longest answer, in tokens")
        with gr.Column(min_width=280):
            system = gr.Textbox(label="System prompt", lines=2, max_lines=6)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
            plain = gr.Checkbox(label="Ask the base in plain text", info="without the chat template")
            score = gr.Checkbox(
                label="Score the answers", visible=can_score, info="by the reward model that the run was trained with"
            )
    return [tokens, temperature, top_p, seed, system, plain, score]


def settings(values: Sequence[Any]) -> Settings:
    """What the settings' panel says, by its components' values. Raises Refused where a field was left empty."""
    tokens, temperature, top_p, seed, system, plain, score = values
    numbers = {"the longest answer": tokens, "temperature": temperature, "top-p": top_p, "the seed": seed}
    if empty := next((name for name, value in numbers.items() if value is None), None):
        raise Refused(f"{empty} is empty; type a number")
    return Settings(int(tokens), float(temperature), float(top_p), int(seed), system or "", bool(plain), bool(score))


def conversation(turns: list[Turn], arm: str, asked: str | None, reply: Reply | None) -> list[dict[str, str]]:
    """A column's messages: the turns that are over, and the question that is being answered with what there is."""
    messages = []
    for turn in turns:
        messages += [_message("user", turn.question), _message("assistant", turn.answers[arm])]
    if asked is not None:
        messages.append(_message("user", asked))
        if reply is not None:
            messages.append(_message("assistant", reply.text or "…" if reply.ended is None else reply.text))
    return messages


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": markdown(text) or "*(an empty answer)*"}
