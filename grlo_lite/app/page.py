"""The page as a whole: its tabs, its look, and the endpoint beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from grlo_lite.app import components
from grlo_lite.app.components import Shared
from grlo_lite.app.endpoint import endpoint
from grlo_lite.app.sessions import Desk
from grlo_lite.app.tabs.blind import BlindTab
from grlo_lite.app.tabs.compare import CompareTab
from grlo_lite.app.tabs.results import results_tab
from grlo_lite.app.tabs.run import run_tab
from grlo_lite.app.votes import Votes
from grlo_lite.reporting import sections
from grlo_lite.reporting.html import plain

# A tab by its title, in the page's order: what builds it inside its own gr.Tab
TABS: dict[str, Callable[[Shared], object]] = {
    "Compare": CompareTab,
    "Blind": BlindTab,
    "Results": results_tab,
    "Run": run_tab,
}


STYLES = [Path(__file__).parent / "page.css", sections.STYLE]


def blocks(desk: Desk, runs: dict[str, Path], base: str, votes: Votes) -> gr.Blocks:
    """The page. `runs` are the adapters' run directories by label, `base` is the base model's name."""
    labels = list(desk.comparison.adapters)
    prompts = sections.example_prompts(runs[labels[0]])
    with gr.Blocks(title="grlo_lite: base and tuned", analytics_enabled=False) as page:
        components.html(
            f"<header><h1>grlo_lite</h1><p>base and tuned <code>{plain(base)}</code>, side by side</p></header>"
        )
        adapter = gr.Dropdown(labels, value=labels[0], label="Adapter", visible=len(labels) > 1, elem_id="adapter")
        settings = components.settings_panel(desk.comparison.longest_answer, desk.comparison.can_score)
        for title, build in TABS.items():
            with gr.Tab(title) as tab:
                build(Shared(page, tab, desk, votes, base, runs, adapter, settings, prompts))
        gr.api(endpoint(desk), api_name="compare", concurrency_limit=None)
    return page.queue(default_concurrency_limit=None, max_size=256, api_open=False)


def look() -> dict[str, Any]:
    """Theme and style, as `mount_gradio_app` takes them: the reader's own fonts, nothing from elsewhere."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    theme.set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")
    theme.set(button_primary_text_color="white", button_primary_text_color_dark="white")
    theme.set(button_primary_background_fill_dark="*primary_700")
    return {"theme": theme, "css_paths": STYLES, "footer_links": []}
