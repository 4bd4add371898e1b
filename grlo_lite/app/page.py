"""The page as a whole: its tabs, its look, and the endpoint beside it."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from grlo_lite.app import parts, run_view
from grlo_lite.app.blind_tab import BlindTab
from grlo_lite.app.compare_tab import CompareTab
from grlo_lite.app.desk import Desk, Session
from grlo_lite.app.rendering import note, plain, table
from grlo_lite.app.votes import Votes, tallies
from grlo_lite.compare import Refused, Settings, Turn

STYLE = Path(__file__).parent / "page.css"


def blocks(desk: Desk, runs: dict[str, Path], base: str, votes: Votes) -> gr.Blocks:
    """The page. `runs` are the adapters' run directories by label, `base` is the base model's name."""
    labels = list(desk.comparison.adapters)
    prompts = run_view.example_prompts(runs[labels[0]])
    with gr.Blocks(title="grlo_lite: base and tuned", analytics_enabled=False) as page:
        parts.html(f"<header><h1>grlo_lite</h1><p>base and tuned <code>{plain(base)}</code>, side by side</p></header>")
        adapter = gr.Dropdown(labels, value=labels[0], label="Adapter", visible=len(labels) > 1, elem_id="adapter")
        settings = parts.settings_panel(desk.comparison.longest_answer, desk.comparison.can_score)
        with gr.Tab("Compare"):
            CompareTab(desk, adapter, settings, prompts)
        with gr.Tab("Blind"):
            BlindTab(desk, votes, base, adapter, settings, prompts)
        with gr.Tab("Results") as results:
            found = parts.html(elem_id="results")
            results.select(lambda: results_of(votes), None, found, **parts.AT_ONCE)
        with gr.Tab("Run"):
            _run_tab(page, adapter, runs)
        gr.api(endpoint(desk), api_name="compare", concurrency_limit=None)
    return page.queue(default_concurrency_limit=None, max_size=256, api_open=False)


def _run_tab(page: gr.Blocks, adapter: gr.Dropdown, runs: dict[str, Path]) -> None:
    overview = parts.html(elem_id="run-overview")
    parts.html("<h3>What was said at a step</h3>")
    step = gr.Slider(1, 2, 1, step=1, label="Step", elem_id="run-step")
    said = parts.html(elem_id="run-samples")

    def shown(label: str) -> list[Any]:
        steps = run_view.sampled_steps(runs[label])
        if not steps:
            return [run_view.overview(runs[label]), gr.Slider(visible=False), ""]
        slider = gr.Slider(minimum=steps[0], maximum=max(steps[-1], steps[0] + 1), value=steps[0], visible=True)
        return [run_view.overview(runs[label]), slider, run_view.samples(runs[label], steps[0])]

    gr.on([page.load, adapter.change], shown, adapter, [overview, step, said], **parts.AT_ONCE)
    step.change(lambda label, at: run_view.samples(runs[label], int(at)), [adapter, step], said, **parts.AT_ONCE)


def results_of(votes: Votes) -> str:
    """The results tab as HTML."""
    cast, broken = votes.read()
    said = note(f"{broken} lines of {votes.path} are no votes and were passed over", "refused") if broken else ""
    if not cast:
        return said + note("no votes yet: ask on the Blind tab and choose a side")
    rows = []
    for tally in tallies(cast):
        rate = tally.win_rate
        shown = f"{rate.rate:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]" if rate else "–"
        asked = "plain text" if tally.plain_base else "its template"
        counts = [str(tally.winners[winner]) for winner in ("tuned", "base", "tie", "both bad")]
        rows.append([tally.adapter, tally.sha256[:12], asked, str(tally.winners.total()), *counts, shown])
    head = [
        "adapter",
        "weights",
        "base asked in",
        "votes",
        "tuned better",
        "base better",
        "tie",
        "both bad",
        "tuned wins, 95 % interval",
    ]
    explained = note("A tie and “both are bad” count as half a win; the interval is Student's t over the votes.")
    return f'{said}{table(head, rows)}{explained}<p><a href="votes.jsonl" download>All votes as JSONL</a></p>'


def endpoint(desk: Desk) -> Any:
    """The function behind /compare, which gradio_client calls."""

    def compare(
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
            raise _refusal("turns are objects with question, base and tuned") from None
        try:
            settings = Settings(max_tokens, temperature, top_p, seed, system, plain_base, score)
            adapter = adapter or next(iter(desk.comparison.adapters))
            for state in desk.answers(Session(), earlier, question, adapter, settings, request):
                replies = {arm: asdict(reply) for arm, reply in state.replies.items()}
                yield {"ahead": state.ahead, "note": state.note, **replies}
        except Refused as refused:
            raise _refusal(str(refused)) from None

    return compare


def _refusal(text: str) -> gr.Error:
    return gr.Error(text, print_exception=False)


def look() -> dict[str, Any]:
    """Theme and style, as `mount_gradio_app` takes them: the reader's own fonts, nothing from elsewhere."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    theme.set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")
    theme.set(button_primary_text_color="white", button_primary_text_color_dark="white")
    theme.set(button_primary_background_fill_dark="*primary_700")
    return {"theme": theme, "css_paths": [STYLE], "footer_links": []}
