"""The Runs page: one run as its directory says it is, looked at every two seconds; comparison and trash below it."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from app import compare, text, text_heads, watch
from app.reports import report_url
from app.site import Site
from app.strip import strip
from app.tabs.compare import CompareTab
from app.tabs.parts import QUIET, section
from app.tabs.plot import plot
from app.tabs.pulse import Pulse, Update, stamp
from app.tabs.run_list import RunList, listed
from app.tabs.trash import TrashTab
from app.theme import SERIES_COLORS
from app.told import told

MOVING = ("metrics", "log")
"""What changes at every few steps of a run, and costs a visitor little: curves and log."""


class RunsTab:
    """The components of the page and how they are brought up to date."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.troubles = gr.HTML(visible=False, padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=260, visible=False) as self.beside:
                self.list = RunList()
                self.picker = self.list.name
            with gr.Column(scale=9, min_width=300):
                self.card = gr.HTML(_empty(), padding=False)
                self._render_buttons()
                with gr.Column(visible=False) as self.details:
                    self._render_details()
        with gr.Accordion(text.COMPARE, open=False, elem_id="compare") as fold:
            self.compare = CompareTab(site, fold)
        with gr.Accordion(text.TRASH, open=False, elem_id="trash") as fold:
            self.trash = TrashTab(site, fold)
        self.seen = gr.State({})
        self.pulse = Pulse(2)
        self._wire()

    def _render_details(self) -> None:
        self._render_charts()
        gr.HTML(section(text.PREVIEWS), elem_classes="section", padding=False)
        self.previews = gr.HTML(padding=False, elem_id="previews")
        with gr.Accordion(text.LOG, open=False):
            self.log = gr.Textbox(
                label=text.LOG, show_label=False, lines=16, max_lines=16, interactive=False, elem_classes="log"
            )
        with gr.Accordion(text.SETTINGS, open=False):
            self.facts = gr.HTML(padding=False)
            # Without a language: gradio's colours for JSON are made for a dark page and too pale on a light one.
            self.settings = gr.Code(
                label=text.SETTINGS, show_label=False, language=None, interactive=False, buttons=["copy"]
            )

    def _render_buttons(self) -> None:
        with gr.Row(elem_classes="actions"):
            self.use = gr.Button(text.USE, variant="primary", visible=False, min_width=90, elem_id="use")
            self.stop = gr.Button(text.STOP, variant="stop", visible=False, min_width=90, elem_id="stop")
            self.resume = gr.Button(text.RESUME, variant="primary", visible=False, min_width=90, elem_id="resume")
            self.download = gr.DownloadButton(text.DOWNLOAD, visible=False, min_width=90, elem_id="download")
            self.report = gr.Button(text.REPORT, visible=False, min_width=90, elem_id="report")
            self.repeat = gr.Button(text.REPEAT, visible=False, min_width=90, elem_id="repeat")
            self.delete = gr.Button(text.DELETE, visible=False, min_width=90, elem_id="delete")
        with gr.Group(visible=False, elem_id="confirm") as self.confirm:
            self.question = gr.HTML(padding=True)
            with gr.Row():
                self.yes = gr.Button(text.DELETE_YES, variant="stop", min_width=140, elem_id="delete-yes")
                self.no = gr.Button(text.DELETE_NO, min_width=140)

    def _render_charts(self) -> None:
        with gr.Row(equal_height=False, visible=False) as self.charts:
            with gr.Column(min_width=300):
                gr.HTML(section(text.CHART), elem_classes="section", padding=False)
                self.chart = plot("chart", colors=dict(zip(text.SERIES.values(), SERIES_COLORS, strict=True)))
            with gr.Column(min_width=300):
                gr.HTML(section(text.METRICS), elem_classes="section", padding=False)
                self.metric = gr.Dropdown(
                    [],
                    label=text.METRIC,
                    show_label=False,
                    interactive=True,
                    allow_custom_value=True,
                    elem_id="metric",
                    container=False,
                )
                self.metrics = plot("metrics", text.METRICS, height=286, is_single=True)

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` brings up to date, in order."""
        shown = [self.card, self.details, self.charts, self.chart, self.metric, self.metrics, self.previews, self.log]
        shown += [self.facts, self.settings]
        buttons = [self.stop, self.resume, self.use, self.download, self.report, self.repeat, self.delete]
        return [self.troubles, self.beside, self.list.seen, self.picker, *shown, *buttons, self.seen]

    @property
    def looked_at(self) -> list[Any]:
        """What `refresh` takes."""
        return [self.picker, self.metric, self.seen]

    def _wire(self) -> None:
        everything = Update(self.refresh, self.looked_at, self.outputs)
        moving = Update(self.advance, self.looked_at, [self.chart, self.metrics, self.log, self.seen])
        self.pulse.wire(self.glance, self.looked_at[:2], self.card, everything, moving)
        self.picker.change(self.refresh, self.looked_at, self.outputs, **QUIET)
        self.metric.input(self.refresh, self.looked_at, self.outputs, **QUIET)
        for button, act in ((self.stop, self._stop), (self.resume, self._resume)):
            button.click(told(act), self.picker, None, **QUIET).then(
                self.refresh, self.looked_at, self.outputs, **QUIET
            )
        self.delete.click(self._ask, self.picker, [self.confirm, self.question], **QUIET)
        hide = (lambda: gr.update(visible=False), None, self.confirm)
        self.no.click(*hide, **QUIET)
        self.picker.change(*hide, **QUIET)
        # One after another: a button that is hidden while it is clicked loses what else the click was to do.
        self.yes.click(told(self._delete), self.picker, None, **QUIET).then(*hide, **QUIET).then(
            self.refresh, self.looked_at, self.outputs, **QUIET
        ).then(self.trash.offer, None, self.trash.picker, **QUIET)
        self.trash.changed(self.refresh, self.looked_at, self.outputs)
        # The report is a page of its own, in a tab of its own; its address needs no answer of the server.
        self.report.click(None, self.picker, None, js=f"name => {{window.open('{report_url('')}' + name, '_blank')}}")

    def _stop(self, name: str) -> None:
        self.site.queue.stop(name)
        gr.Info(text.STOP_ASKED.format(name=name))

    def _resume(self, name: str) -> None:
        self.site.queue.resume(name)
        gr.Info(text.QUEUED.format(name=name))

    def _ask(self, name: str) -> list[Any]:
        return [gr.update(visible=True), f"<p role='alert'>{text.DELETE_ASK.format(name=name)}</p>"]

    def _delete(self, name: str) -> None:
        self.site.queue.delete(name)
        gr.Info(text.DELETED.format(name=name))

    def glance(self, name: str | None, metric: str | None) -> tuple[str, str, str]:
        """Return the head of the run that is shown, the stamp of what changes now and then, and that of the rest.

        Args:
            name: The run that is shown; None takes the one a visitor most likely wants.
            metric: What the second chart shows; None takes the first there is.
        """
        view = self._look(name)
        seen = self._seen(view, metric)
        moving = {key: seen.pop(key, None) for key in MOVING}
        return (_empty() if view is None else watch.card(view)), stamp(seen), stamp(moving)

    def _look(self, name: str | None) -> watch.Snapshot | None:
        queue = self.site.queue
        if name not in [queue.name(run) for run, _ in queue.runs()]:
            name = watch.newest(queue)
        return None if name is None else watch.look(queue, name)

    def _seen(self, view: watch.Snapshot | None, metric: str | None) -> dict[str, Any]:
        """Return what decides how the page looks, without the head of the run, by output."""
        queue = self.site.queue
        seen: dict[str, Any] = {"name": None, "troubles": queue.troubles()}
        if view is None:
            return seen
        offered = [key for key in compare.names_in(view.metrics) if key not in text.SERIES]
        ended = view.state not in ("queued", "running")
        return seen | {
            "name": view.name,
            "list": listed(queue, view.name),
            "facts": watch.facts(view),
            "curves": bool(view.metrics),
            "metrics": len(view.metrics),
            "metric": metric if metric in offered else next(iter(offered), None),
            "offered": offered,
            "previews": [path for path, _ in watch.previews(view.run)],
            "log": watch.log_tail(view.run),
            "buttons": [not ended and not view.is_stopping, view.can_resume, view.has_artifact, ended],
            "report": ended and (view.run.path / "report.html").is_file(),
        }

    def advance(self, name: str | None, metric: str | None, before: dict[str, Any]) -> list[Any]:
        """Return the updates of curves and log, and what the page then shows; arguments as `refresh` takes them."""
        view = self._look(name)
        if view is None or view.name != before.get("name"):
            # Another run comes onto the page, with everything that belongs to it.
            return [gr.skip()] * 4
        seen = self._seen(view, metric)
        shown = _one(seen["metric"])
        return [
            watch.drawn(watch.losses(view.metrics)),
            watch.drawn(watch.chart(view.metrics, shown)),
            seen["log"],
            before | {key: seen[key] for key in MOVING},
        ]

    def refresh(self, name: str | None, metric: str | None, before: dict[str, Any]) -> list[Any]:
        """Return the updates of `outputs`; what looks as it did before is left alone.

        Args:
            name: As `glance` takes it.
            metric: As `glance` takes it.
            before: What this visitor's page shows at present, by output.
        """
        view = self._look(name)
        seen = self._seen(view, metric)

        def changed(*keys: str) -> bool:
            return seen["name"] != before.get("name") or any(seen[key] != before.get(key) for key in keys)

        warned = _troubles(seen["troubles"]) if changed("troubles") else gr.skip()
        if view is None:
            hidden, skipped = gr.update(visible=False), [gr.skip()] * 8
            return [warned, hidden, "", "", _empty(), hidden, *skipped, *[hidden] * 7, seen]
        metric = seen["metric"]
        shown = _one(metric)

        def button(visible: bool, key: str = "buttons", **more: Any) -> Any:
            return gr.update(visible=visible, **more) if changed(key) else gr.skip()

        can_stop, can_resume, can_use, can_delete = seen["buttons"]
        return [
            warned,
            gr.update(visible=True) if changed() else gr.skip(),
            seen["list"] if changed("list") else gr.skip(),
            seen["name"] if changed() else gr.skip(),
            watch.card(view),
            gr.update(visible=True) if changed() else gr.skip(),
            gr.update(visible=seen["curves"]) if changed("curves") else gr.skip(),
            watch.drawn(watch.losses(view.metrics)) if changed("metrics") else gr.skip(),
            gr.update(choices=seen["offered"], value=metric) if changed("offered", "metric") else gr.skip(),
            watch.drawn(watch.chart(view.metrics, shown)) if changed("metrics", "metric") else gr.skip(),
            strip(view.run) if changed("previews") else gr.skip(),
            seen["log"] if changed("log") else gr.skip(),
            seen["facts"] if changed("facts") else gr.skip(),
            json.dumps(view.record["config"], indent=2) if changed() else gr.skip(),
            button(can_stop),
            button(can_resume),
            button(can_use, value=text_heads.USE if view.record["method"] == "my3dgen" else text.USE),
            button(can_use, value=str(view.run.artifact_path) if can_use else None),
            button(seen["report"], "report"),
            button(True),
            button(can_delete),
            seen,
        ]


def _one(metric: str | None) -> dict[str, str]:
    """Return the series of a chart of one figure."""
    return {metric: metric} if metric else {}


def _troubles(troubles: list[str]) -> Any:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in troubles)
    return gr.update(value=f"<div class='problems' role='alert'><ul>{lines}</ul></div>", visible=bool(troubles))


def _empty() -> str:
    return f"<div class='run empty'>{text.NO_RUNS}</div>"
