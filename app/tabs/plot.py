"""A chart of figures over the steps of a run, as `app.watch.chart` gives them."""

from __future__ import annotations

import gradio as gr

from app import text


def plot(
    name: str,
    label: str = text.CHART,
    colors: dict[str, str] | None = None,
    height: int = 330,
    is_single: bool = False,
) -> gr.LinePlot:
    """Render an empty chart inside the present gradio context; `app.watch.drawn` fills it.

    Args:
        name: Its id in the page.
        label: What it shows, for whoever cannot see it.
        colors: Colour by series; gradio's own when left out.
        height: In pixels.
        is_single: Whether there is one line, which needs no legend and may be another one later.
    """
    return gr.LinePlot(
        x=text.CHART_STEP,
        y=text.CHART_LOSS,
        y_title=" ",
        color=None if is_single else "series",
        color_title="",
        color_map=colors,
        label=label,
        show_label=False,
        height=height,
        buttons=[],
        elem_id=name,
        elem_classes="plot",
    )
