"""Comparing runs: up to eight in one chart, with what differs between their settings."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from app import compare, text, watch
from app.site import Site
from app.tabs.parts import QUIET
from app.theme import COMPARED_COLORS
from app.told import told


class CompareTab:
    """A choice of runs, a choice of a metric, a chart and a table."""

    def __init__(self, site: Site, fold: gr.Accordion) -> None:
        """Render inside the present gradio context; the choices are read when `fold` is opened."""
        self.site = site
        with gr.Row():
            self.runs = gr.Dropdown(
                [],
                multiselect=True,
                max_choices=compare.MAX_RUNS,
                label=text.COMPARE_RUNS,
                info=text.COMPARE_INFO.format(count=compare.MAX_RUNS),
                scale=3,
                min_width=260,
                elem_id="compared",
            )
            self.metric = gr.Dropdown(
                ["loss"], value="loss", label=text.METRIC, allow_custom_value=True, scale=1, min_width=160
            )
        self.chart = gr.LinePlot(
            x=text.CHART_STEP,
            y=text.CHART_LOSS,
            y_title=" ",
            color="series",
            color_title="",
            show_label=False,
            height=340,
            buttons=[],
            visible=False,
            elem_classes="plot",
        )
        self.table = gr.HTML(padding=False, elem_id="differences")
        fold.expand(self.offer, self.runs, self.runs, **QUIET)
        shown = [self.metric, self.chart, self.table]
        for part in (self.runs, self.metric):
            part.input(told(self.show), [self.runs, self.metric], shown, **QUIET)

    def offer(self, present: list[str] | None) -> Any:
        """Return the update of the choice of runs."""
        choices = watch.choices(self.site.queue)
        names = {value for _, value in choices}
        return gr.update(choices=choices, value=[name for name in present or [] if name in names])

    def show(self, names: list[str] | None, metric: str) -> list[Any]:
        """Return updates of the choice of metrics, the chart and the table."""
        if not names or len(names) < 2:
            return [gr.skip(), gr.update(visible=False), f"<p class='note'>{text.COMPARE_TWO}</p>"]
        runs = [(name, self.site.queue.find(name)) for name in names]
        offered = compare.metrics_of(runs)
        metric = metric if metric in offered else next(iter(offered), "loss")
        colors = dict(zip(names, COMPARED_COLORS, strict=False))
        chart = gr.LinePlot(compare.chart(runs, metric), color_map=colors, visible=True)
        return [gr.update(choices=offered, value=metric), chart, table(compare.compare(runs))]


def table(found: compare.Comparison) -> str:
    """Return a comparison as an HTML table: runs in columns, what differs in rows."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in found.names)
    states = "".join(f"<td>{text.STATES.get(state, state)}</td>" for state in found.states)
    body = f"<tr><th scope='row'>{text.STATE}</th>{states}</tr>"
    for row in (*found.settings, *found.metrics):
        cells = "".join(f"<td>{html.escape(_word(value))}</td>" for value in row.values)
        body += f"<tr><th scope='row'>{html.escape(row.name)}</th>{cells}</tr>"
    same = "" if found.settings else f"<p class='note'>{text.COMPARE_SAME}</p>"
    return f"{same}<div class='scroll' tabindex='0'><table class='plain'><tr><td></td>{head}</tr>{body}</table></div>"


def _word(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
