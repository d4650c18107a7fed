"""A chart of figures over the steps of a run, as `app.watch.chart` gives them."""

from __future__ import annotations

import gradio as gr

from app import text


def plot(name: str, label: str = text.CHART, height: int = 330) -> gr.LinePlot:
    """Render an empty chart inside the present gradio context; `app.watch.drawn` fills it.

    Args:
        name: Its id in the page.
        label: What it shows, for whoever cannot see it.
        height: In pixels.
    """
    return gr.LinePlot(
        x=text.CHART_STEP,
        y=text.CHART_LOSS,
        y_title=" ",
        color="series",
        color_title="",
        label=label,
        show_label=False,
        height=height,
        buttons=[],
        elem_id=name,
        elem_classes="plot",
    )
