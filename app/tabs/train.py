"""The Train page: pictures, words, length, Start. Everything else comes from the configuration models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import text
from app.captions import Rows
from app.form import Form, FormError, Values
from app.site import Site
from app.tabs.parts import PRIVATE, QUIET, problem_box
from app.tabs.train_pictures import TrainPictures
from app.tabs.train_settings import TrainSettings, check_paths, needs_images
from lrdiff.errors import DataError
from trainers.config import RunConfig
from trainers.registry import run_config_class
from trainers.rundir import RunDir

BASIC = frozenset({"data.images", "data.prompt", "model", "optim.steps"})


class TrainTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        led = gr.HTML(padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300) as images:
                self.pictures = TrainPictures(site)
            with gr.Column(scale=6, min_width=300):
                self.settings = TrainSettings(self.pictures.first)
                self.settings.of_pictures.append(images)
                self.estimate = gr.HTML(padding=False, elem_id="estimate")
                self.problems = gr.HTML(visible=False)
                with gr.Row(elem_classes="go"):
                    self.start = gr.Button(text.START, variant="primary", size="lg", scale=3, elem_id="start")
                    self.probe = gr.Button(text.CHECK, size="lg", scale=1, min_width=110, elem_id="check")
        led.value = f"<p class='lead'>{text.LED}</p>" if self.pictures.subjects else ""
        self._wire()

    @property
    def form(self) -> Form:
        """The settings of the method that is chosen at first."""
        return self.settings.form

    @property
    def inputs(self) -> set[Any]:
        """Every component that decides a run."""
        return {*self.pictures.inputs, *self.settings.inputs}

    @property
    def foreseen(self) -> list[Any]:
        """What `foresee` brings up to date."""
        return [self.estimate, self.settings.length.choice]

    def _wire(self) -> None:
        words = [self.settings.component(path) for path in ("data.prompt", "data.validation")]
        shown, example = [*self.pictures.shown, *words], self.pictures.example
        self.pictures.files.change(self._dropped, self.pictures.inputs, [*shown, example], **PRIVATE)
        example.input(self._chosen, [self.pictures.files, example], shown, **PRIVATE)
        self.settings.wire()
        deciding = ("model", "optim.steps", "optim.accumulate", "data.batch_size", "watch.preview_every")
        changes = [self.settings.component(path).change for path in deciding]
        gr.on([*changes, self.settings.method.change], self.foresee, self.inputs, self.foreseen, **QUIET)
        self.probe.click(
            self._measure, self.inputs, self.foreseen, concurrency_id="check", concurrency_limit=1,
            api_visibility="private", show_progress="minimal", show_progress_on=self.estimate,
        )  # fmt: skip

    def _dropped(self, files: list[str] | None, example: str, edited: Rows) -> list[Any]:
        """Show what was dropped; own pictures take the place of an example and of the words that belong to it."""
        if files and example:
            return [*self._chosen(files, ""), ""]
        return [*self.pictures.dropped(files, example, edited), *[gr.skip()] * 3]

    def _chosen(self, files: list[str] | None, example: str) -> list[Any]:
        """Show an example subject, with the prompt and the validation pictures that belong to it."""
        subject = self.pictures.subjects.get(example)
        return [*self.pictures.chosen(files, example), *self.settings.of_subject(subject)]

    def foresee(self, values: Values) -> list[Any]:
        """Return updates of what the page says about time, memory and disk."""
        try:
            config = self.read(values).model_dump(mode="json")
        except FormError:
            return [gr.skip(), gr.skip()]
        return self.settings.length.foresee(self.site.queue, values[self.settings.method], config)

    def _measure(self, values: Values) -> list[Any]:
        """Carry out the preflight with the pictures and settings of the form, and say what it found."""
        problems = self.check(values)
        if problems:
            return [problem_box(problems, text.NOT_CHECKED), gr.skip()]
        config, method = self.read(values).model_dump(mode="json"), values[self.settings.method]
        return self.settings.length.measure(self.site.queue, method, config, self._files_of(values))

    def _files_of(self, values: Values) -> AbstractContextManager[dict[str, Path]]:
        return self.pictures.files_of(values) if needs_images(values[self.settings.method]) else nullcontext({})

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against starting a run, by path of the setting; the pictures are "data.images"."""
        problems = self.pictures.check(values) if needs_images(values[self.settings.method]) else {}
        try:
            config = self.read(values)
        except FormError as error:
            return problems | error.problems
        return problems | check_paths(config)

    def read(self, values: Values) -> RunConfig[Any]:
        """Return the run configuration of the form. Raises `FormError`."""
        return self.settings.read(values)

    def submit(self, values: Values) -> RunDir:
        """Put the run into the queue. Raises `FormError` when something stands against it."""
        problems = self.check(values)
        if problems:
            raise FormError(problems)
        method = values[self.settings.method]
        config = self.read(values).settled().model_dump(mode="json")
        with self._files_of(values) as files:
            label = values[self.settings.name] or (values[self.pictures.example] if files else method) or ""
            if not label and "data.prompt" in run_config_class(method).unread:  # which would name the run otherwise
                label = text.PHOTOS
            return self.site.queue.submit(method, config, files, label)

    def with_run(self, run: RunDir) -> dict[Component, Any]:
        """Return updates of the inputs that repeat a run: its method, settings and pictures.

        Raises:
            DataError: This page does not train the run's method.
        """
        record = run.read()
        if record["method"] not in self.settings.forms:
            raise DataError(text.NOT_REPEATABLE.format(method=record["method"], path=run.path))
        pictures = self.pictures.with_folder(Path(record["config"]["data"]["images"]))
        return {**self.settings.with_record(record), **pictures}

    def explain(self, problems: Mapping[str, str]) -> dict[Component, Any]:
        """Return updates that show problems, and open Advanced where one of them lies in it."""
        opened = gr.update(open=True) if set(problems) - BASIC else gr.skip()
        box = problem_box(problems, text.PROBLEMS) if problems else ""
        shown = gr.update(value=box, visible=bool(problems))
        return {self.problems: shown, self.settings.advanced: opened}  # pyright: ignore[reportReturnType]
