"""The Generate page: a base model, adapters, words, and images that are files on disk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from app import axes, limits, text, watermarks
from app.axes import Axis
from app.drawing import Drawing, Status, bar
from app.form import Form, FormError, Values
from app.reuse import reused
from app.site import Site
from app.tabs.parts import PRIVATE, QUIET
from app.tabs.picker import AdapterPicker
from app.told import told
from lrdiff.artifact import read_header
from lrdiff.backbones import embedded
from lrdiff.errors import DataError
from lrdiff.generate_config import AdapterSpec, GenerateConfig
from trainers.rundir import RunDir

EVERY = 0.3
"""Seconds between two looks at a generation under way."""


class GenerateTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.form = Form(GenerateConfig, skip=["out"])
        self._drawings: dict[str, Drawing] = {}
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._render_words()
                self._render_numbers()
                self._render_axes()
                with gr.Accordion(text.MORE_SETTINGS, open=False):
                    with gr.Row(elem_classes="settings"):
                        for path in self.form.missing():
                            self.form.add(path, info=text.help_with_flag(self.form.field(path)), min_width=220)
                    self.share = gr.Checkbox(label=text.SHARE, info=text.SHARE_INFO)
                with gr.Row(elem_classes="go"):
                    self.start = gr.Button(text.GENERATE, variant="primary", size="lg", scale=3, elem_id="generate")
                    self.cancel = gr.Button(text.CANCEL, size="lg", scale=1, min_width=100, elem_id="cancel")
            with gr.Column(scale=7, min_width=300, elem_classes="beside"):
                self.status = gr.HTML(
                    f"<div class='empty waiting'>{text.RESULTS_EMPTY}</div>", elem_id="status", padding=False
                )
                self.gallery = gr.Gallery(
                    label=text.RESULTS,
                    show_label=False,
                    columns=3,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    visible=False,
                    type="filepath",
                    buttons=["download", "download_all", "fullscreen"],
                    elem_id="results",
                )
                self.shown = gr.State(0)
                with gr.Row():
                    self.verify = gr.Button(
                        text.VERIFY_IT, size="sm", scale=0, min_width=180, visible=False, elem_id="verify-it"
                    )
                    self.reuse = gr.UploadButton(text.REUSE, file_types=[".png"], size="sm", scale=0, min_width=220)
        self._wire()

    @property
    def inputs(self) -> set[Block]:
        """Every component that decides the images."""
        return {*self.form.components.values(), *self.picker.parts, *self.axes, self.share}

    def _render_words(self) -> None:
        with gr.Group():
            self.form.add("prompt", info=text.PROMPTS_INFO, lines=2, max_lines=6, elem_id="generate-prompt")
            self.form.add("negative_prompt", max_lines=3)
        with gr.Group():
            field = self.form.field("model")
            names = embedded.names() or [field.default]
            model = gr.Dropdown(
                names, value=field.default, label=text.label("model"), info=text.help(field), allow_custom_value=True
            )
            self.form.bind("model", model)
            self.picker = AdapterPicker(self.site)
            self.form.bind("adapter", self.picker.first)
            self.decoder = gr.Dropdown(
                watermarks.choices(self.site), value="", label=text.MARK, info=text.MARK_INFO, elem_id="mark"
            )
            self.form.bind("decoder", self.decoder)

    def _render_numbers(self) -> None:
        with gr.Group():
            with gr.Row():
                for path in ("count", "steps"):
                    self.form.add(path, min_width=120)
            with gr.Row():
                for path in ("guidance", "seed"):
                    self.form.add(path, min_width=120)
        self.dice = gr.Button(text.NEW_SEED, size="sm", scale=0, min_width=120)

    def _render_axes(self) -> None:
        choices = [(text.AXIS_NONE, ""), *((text.label(name), name) for name in axes.SETTINGS)]
        with gr.Accordion(text.AXES, open=False, elem_id="axes"):
            gr.HTML(f"<p class='note'>{text.AXES_INFO}</p>", padding=False)
            with gr.Row():
                self.across = gr.Dropdown(choices, value="", label=text.AXIS_ACROSS, min_width=130)
                self.across_values = gr.Textbox(label=text.AXIS_VALUES, lines=2, min_width=130)
            with gr.Row():
                self.down = gr.Dropdown(choices, value="", label=text.AXIS_DOWN, min_width=130)
                self.down_values = gr.Textbox(label=text.AXIS_VALUES, lines=2, min_width=130)
        self.axes: list[Any] = [self.across, self.across_values, self.down, self.down_values]

    def _wire(self) -> None:
        self.start.click(
            self.generate,
            self.inputs,
            [self.status, self.gallery, self.verify, self.shown],
            # The device's lock lets one thing at a time compute, across visitors and trainers, and says who waits for
            # whom; gradio's own queue would only keep the second visitor waiting without a word.
            concurrency_limit=None,
            validator=self.form.validator(self.check),
            **PRIVATE,
        )
        self.start.click(self._explain, self.inputs, self.status, **QUIET)
        # On a phone the images are below everything else.
        self.start.click(None, js="() => {document.querySelector('#status').scrollIntoView({block: 'nearest'})}")
        self.cancel.click(self._cancel, None, None, **QUIET)
        self.gallery.select(_place, None, self.shown, **QUIET)
        self.dice.click(lambda: random.randrange(2**31), None, self.form.components["seed"], **QUIET)
        model = self.form.components["model"]
        model.change(self.offer, self.looked_at, self.offered, **QUIET)  # pyright: ignore[reportAttributeAccessIssue]
        self.reuse.upload(told(self._reuse), self.reuse, [*self.form.components.values(), *self.picker.rest], **PRIVATE)

    @property
    def looked_at(self) -> list[Any]:
        """What `offer` takes."""
        return [self.form.components["model"], *self.picker.choices]

    @property
    def used(self) -> list[Any]:
        """What `with_run` brings up to date."""
        return [*self.picker.parts, self.form.components["prompt"], self.form.components["model"]]

    def with_run(self, run: RunDir, weight: float = 1.0, begin: float = 0.0, end: float = 1.0) -> dict[Component, Any]:
        """Return updates that make images with a run's result: its adapter, its words, its model.

        Args:
            run: An ended run.
            weight: Strength of the adapter.
            begin: Share of the sampling steps from which it acts.
            end: Share of the sampling steps until which it acts.
        """
        config = run.read()["config"]
        # The words that the run learned: a caption where every picture had one, else the prompt.
        words = read_header(run.artifact_path).extra.get("prompt", config["data"]["prompt"])
        shown = {self.form.components["prompt"]: words, self.form.components["model"]: config["model"]}
        return {**self.picker.write(config["model"], [AdapterSpec(run.path, weight, begin, end)]), **shown}

    def with_mark(self, decoder: Path) -> dict[Any, Any]:
        """Switch the watermark on, with a decoder that is installed."""
        return {self.decoder: gr.update(choices=watermarks.choices(self.site), value=str(decoder))}

    @property
    def offered(self) -> list[Any]:
        """What `offer` brings up to date."""
        return [*self.picker.choices, self.picker.card, self.decoder]

    def offer(self, model: str, *present: str | None) -> list[Any]:
        """Return updates of the pickers: what fits the base model. What is chosen stays, if it still fits."""
        return [*self.picker.offer(model, *present), gr.update(choices=watermarks.choices(self.site))]

    def read(self, values: Values) -> GenerateConfig:
        """Return the configuration of the form. Raises `FormError`."""
        return self.form.read(values, adapter=self.picker.specs(values), out=self.site.outputs)

    def plan(self, values: Values) -> tuple[list[GenerateConfig], Axis | None, Axis | None]:
        """Return what to make, and the axes of a grid. Raises `FormError`."""
        config = self.read(values)
        across = axes.axis(values[self.across], values[self.across_values] or "")
        down = axes.axis(values[self.down], values[self.down_values] or "")
        if across is None and down is None:
            limits.check(config)
            return [config], None, None
        rows = axes.cells(config, across, down)
        made = [cell for row in rows for cell in row]
        for cell in made:
            limits.check(cell, len(made))
        return made, across, down

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against generating, by path of the setting."""
        try:
            self.plan(values)
        except FormError as error:
            return error.problems
        return {}

    def _explain(self, values: Values) -> Any:
        """Say what is wrong with several settings together, or with one that cannot be seen."""
        problems = self.check(values)
        if not problems:
            return gr.skip()
        lines = [f"{text.label(path)}: {message}" if path else message for path, message in problems.items()]
        return bar(Status("", error="; ".join(lines)))

    def generate(self, values: Values, request: gr.Request) -> Iterator[list[Any]]:
        """Generate, yielding status and images as they come. A page that is closed ends its generation."""
        configs, across, down = self.plan(values)

        def lay_out(files: Sequence[Path]) -> Path | None:
            return axes.lay_out(files, across, down, configs) if across or down else None

        drawing = Drawing(configs, self.site.queue.device, wait=not values[self.share], finish=lay_out)
        session = request.session_hash or ""
        self._drawings[session] = drawing
        shown: Status | None = None
        try:
            with closing(drawing.follow(EVERY)) as states:
                for status in states:
                    yield [bar(status), *self._pictures(status, shown)]
                    shown = status
        finally:
            self._drawings.pop(session, None)

    def _pictures(self, status: Status, before: Status | None) -> list[Any]:
        """Return the updates of the gallery and what belongs to it; none where no image has come."""
        if before is not None and status.saved == before.saved:
            return [gr.skip()] * 3
        there = bool(status.saved)
        files = [str(path) for path in status.saved]
        return [gr.update(value=files, visible=there), gr.update(visible=there), 0]

    def picked(self, files: list[tuple[str, str | None]] | None, number: int) -> str:
        """Return the file of the image that is looked at, else of the first. Raises `DataError` when there is none."""
        if not files:
            raise DataError(text.NO_IMAGE_YET)
        return files[min(number, len(files) - 1)][0]

    def _cancel(self, request: gr.Request) -> None:
        drawing = self._drawings.get(request.session_hash or "")
        if drawing is not None:
            drawing.cancel()

    def _reuse(self, file: str) -> list[Any]:
        """Fill the form with the settings inside a PNG."""
        found = reused(Path(file), self.site)
        name = Path(file).name
        gr.Info(
            text.REUSED_BUT.format(name=name, problem=found.problem) if found.problem else text.REUSED.format(name=name)
        )
        shown = dict(self.form.write(found.config).items())
        parts = self.picker.write(found.config.model, found.adapters)
        shown[self.picker.first] = parts[self.picker.first]
        shown[self.decoder] = gr.update(choices=watermarks.choices(self.site), value=found.decoder)
        return [*(shown[part] for part in self.form.components.values()), *(parts[part] for part in self.picker.rest)]


def _place(chosen: gr.SelectData) -> int:
    return int(chosen.index)
