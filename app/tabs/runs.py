"""The Runs page: one run as its directory says it is, looked at every two seconds."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from app import text, watch
from app.site import Site
from app.theme import SERIES_COLORS
from lrdiff.errors import RunError

EVERY = 2.0
"""Seconds between two looks."""


class RunsTab:
    """The components of the page and how they are brought up to date."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        with gr.Row(equal_height=False):
            self.picker = gr.Dropdown(
                choices=[], value=None, label=text.RUN, interactive=True, scale=4, min_width=260, elem_id="run"
            )
            with gr.Column(scale=3, min_width=260), gr.Row():
                self.stop = gr.Button(text.STOP, variant="stop", visible=False, min_width=120, elem_id="stop")
                self.use = gr.Button(text.USE, variant="primary", visible=False, min_width=120, elem_id="use")
                self.download = gr.DownloadButton(text.DOWNLOAD, visible=False, min_width=120)
        self.card = gr.HTML(_empty(), padding=False)
        with gr.Column(visible=False) as self.details:
            with gr.Row(equal_height=False):
                with gr.Column(min_width=300, scale=5):
                    gr.HTML(f"<h2>{text.CHART}</h2>", elem_classes="section", padding=False)
                    self.chart = gr.LinePlot(
                        x=text.CHART_STEP,
                        y=text.CHART_LOSS,
                        color="series",
                        color_title="",
                        color_map=dict(zip(text.SERIES.values(), SERIES_COLORS, strict=True)),
                        label=text.CHART,
                        show_label=False,
                        height=330,
                        buttons=[],
                        elem_id="chart",
                    )
                with gr.Column(min_width=300, scale=5):
                    gr.HTML(f"<h2>{text.PREVIEWS}</h2>", elem_classes="section", padding=False)
                    self.previews = gr.Gallery(
                        label=text.PREVIEWS,
                        show_label=False,
                        columns=4,
                        height=330,
                        object_fit="contain",
                        interactive=False,
                        buttons=["download", "fullscreen"],
                        elem_id="previews",
                    )
            with gr.Accordion(text.LOG, open=False):
                self.log = gr.Textbox(
                    show_label=False, label=text.LOG, lines=14, max_lines=14, interactive=False, elem_classes="log"
                )
            with gr.Accordion(text.SETTINGS, open=False):
                self.settings = gr.Code(language="json", show_label=False, interactive=False)
        self.seen = gr.State({})
        self.timer = gr.Timer(EVERY)
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` brings up to date, in order."""
        shown = [self.card, self.details, self.chart, self.previews, self.log, self.settings]
        return [self.picker, *shown, self.stop, self.use, self.download, self.seen]

    def _wire(self) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "queue": False,
            "concurrency_limit": None,
        }
        self.timer.tick(self.refresh, [self.picker, self.seen], self.outputs, **quiet)
        self.picker.change(self.refresh, [self.picker, self.seen], self.outputs, **quiet)
        self.stop.click(self._stop, self.picker, None, **quiet).then(
            self.refresh, [self.picker, self.seen], self.outputs, **quiet
        )

    def _stop(self, name: str) -> None:
        try:
            self.site.queue.stop(name)
        except RunError as error:
            raise gr.Error(str(error), print_exception=False) from error
        gr.Info(text.STOP_ASKED.format(name=name))

    def refresh(self, name: str | None, seen: dict[str, Any]) -> list[Any]:
        """Return the updates of `outputs`; what looks as it did before is left alone.

        Args:
            name: The run that is shown; None takes the one a visitor most likely wants.
            seen: What this visitor's page shows at present, by output.
        """
        queue = self.site.queue
        choices = watch.choices(queue)
        if name not in [value for _, value in choices]:
            name = watch.newest(queue)
        signature: dict[str, Any] = {"choices": choices, "name": name}
        if name is None:
            picker = gr.update(choices=[], value=None)
            hidden = [gr.update(visible=False)] * 3
            return [picker, _empty(), gr.update(visible=False), *[gr.skip()] * 4, *hidden, signature]
        view = watch.look(queue, name)
        updates = {
            "card": watch.card(view),
            "metrics": len(view.metrics),
            "previews": watch.previews(view.run),
            "log": watch.log_tail(view.run),
            "buttons": (view.state in ("queued", "running") and not view.is_stopping, view.has_artifact),
        }
        signature |= updates | {"log": hash(updates["log"])}
        fresh = signature["name"] != seen.get("name")

        def changed(key: str) -> bool:
            return fresh or signature[key] != seen.get(key)

        can_stop, can_use = updates["buttons"]
        file = str(view.run.artifact_path)
        picker = gr.update(choices=choices, value=name) if changed("choices") else gr.skip()
        return [
            picker,
            updates["card"] if changed("card") else gr.skip(),
            gr.update(visible=True) if fresh else gr.skip(),
            watch.chart(view.metrics) if changed("metrics") else gr.skip(),
            updates["previews"] if changed("previews") else gr.skip(),
            updates["log"] if changed("log") else gr.skip(),
            json.dumps(view.record["config"], indent=2) if fresh else gr.skip(),
            gr.update(visible=can_stop) if changed("buttons") else gr.skip(),
            gr.update(visible=can_use) if changed("buttons") else gr.skip(),
            gr.update(visible=can_use, value=file if can_use else None) if changed("buttons") else gr.skip(),
            signature,
        ]


def _empty() -> str:
    return f"<div class='run empty'>{text.NO_RUNS}</div>"
