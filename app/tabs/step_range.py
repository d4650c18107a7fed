"""In which part of the sampling steps an adapter acts: two sliders, folded away."""

from __future__ import annotations

import gradio as gr

from app import text


class StepRange:
    """From which share of the steps to which; all of them at first."""

    def __init__(self, visible: bool = True) -> None:
        """Render inside the present gradio context."""
        with gr.Accordion(text.STEP_RANGE, open=False, visible=visible) as self.fold:
            gr.HTML(f"<p class='note'>{text.STEP_RANGE_INFO}</p>", padding=False)
            with gr.Row():
                self.begin = gr.Slider(0, 1, 0, step=0.05, label=text.STEP_BEGIN, min_width=130)
                self.end = gr.Slider(0, 1, 1, step=0.05, label=text.STEP_END, min_width=130)
