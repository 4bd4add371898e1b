"""The Run tab: a run's curves, samples and evaluation."""

from typing import Any

import gradio as gr

from grlo_lite.app import components
from grlo_lite.app.components import Shared
from grlo_lite.reporting import sections


def run_tab(shared: Shared) -> None:
    """Builds the tab of the chosen adapter's run."""
    adapter, runs = shared.adapter, shared.runs
    overview = components.html(elem_id="run-overview")
    components.html("<h3>What was said at a step</h3>")
    step = gr.Slider(1, 2, 1, step=1, label="Step", elem_id="run-step")
    said = components.html(elem_id="run-samples")

    def shown(label: str) -> list[Any]:
        steps = sections.sampled_steps(runs[label])
        if not steps:
            return [sections.overview(runs[label]), gr.Slider(visible=False), ""]
        slider = gr.Slider(minimum=steps[0], maximum=max(steps[-1], steps[0] + 1), value=steps[0], visible=True)
        return [sections.overview(runs[label]), slider, sections.samples(runs[label], steps[0])]

    gr.on([shared.page.load, adapter.change], shown, adapter, [overview, step, said], **components.AT_ONCE)
    step.change(lambda label, at: sections.samples(runs[label], int(at)), [adapter, step], said, **components.AT_ONCE)
