"""The Generate page: a base model, an adapter, words, and images that are files on disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from pydantic import ValidationError

from app import text, watch
from app.drawing import Drawing, Status, bar
from app.form import Form, FormError, Values, to_component
from app.site import Site
from lrdiff.backbones import embedded
from lrdiff.errors import DataError
from lrdiff.generate_config import GenerateConfig, parse_adapter
from lrdiff.metadata import read_parameters
from trainers.rundir import RunDir

EVERY = 0.3
"""Seconds between two looks at a generation under way."""

PLAIN_KEYS = ("prompt", "negative_prompt", "seed", "steps", "guidance", "sampler", "width", "height")
"""What is taken over from an image that another tool made."""


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
                with gr.Accordion(text.MORE_SETTINGS, open=False):
                    with gr.Row(elem_classes="settings"):
                        for path in self.form.missing():
                            self.form.add(path, info=text.help_with_flag(self.form.field(path)), min_width=220)
                    self.share = gr.Checkbox(label=text.SHARE, info=text.SHARE_INFO)
                with gr.Row():
                    self.start = gr.Button(text.GENERATE, variant="primary", size="lg", scale=3, elem_id="generate")
                    self.cancel = gr.Button(text.CANCEL, size="lg", scale=1, min_width=100, elem_id="cancel")
            with gr.Column(scale=7, min_width=300):
                self.status = gr.HTML(elem_id="status", visible=False, padding=False)
                self.gallery = gr.Gallery(
                    label=text.RESULTS,
                    show_label=False,
                    columns=3,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    buttons=["download", "download_all", "fullscreen"],
                    elem_id="results",
                )
                with gr.Row():
                    self.reuse = gr.UploadButton(text.REUSE, file_types=[".png"], size="sm", scale=0, min_width=220)
        self._wire()

    @property
    def inputs(self) -> set[Block]:
        """Every component that decides the images."""
        return {*self.form.components.values(), self.weight, self.share}

    def _render_words(self) -> None:
        with gr.Group():
            self.form.add("prompt", info=text.PROMPTS_INFO, lines=2, max_lines=6, elem_id="generate-prompt")
            self.form.add("negative_prompt", max_lines=3)
        with gr.Group():
            adapter = gr.Dropdown(
                [(text.BASE_ONLY, "")], value="", label=text.ADAPTER, info=text.ADAPTER_INFO, elem_id="adapter"
            )
            self.adapter = adapter
            self.form.bind("adapter", adapter)
            self.weight = gr.Slider(0, 2, value=1, step=0.05, label=text.WEIGHT, info=text.WEIGHT_INFO)
            field = self.form.field("model")
            names = embedded.names() or [field.default]
            model = gr.Dropdown(
                names, value=field.default, label=text.label("model"), info=text.help(field), allow_custom_value=True
            )
            self.form.bind("model", model)

    def _render_numbers(self) -> None:
        with gr.Group(), gr.Row():
            for path in ("count", "steps", "guidance", "seed"):
                self.form.add(path, min_width=180)
        with gr.Row():
            self.dice = gr.Button(text.NEW_SEED, size="sm", scale=0, min_width=120)

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.start.click(
            self.generate,
            self.inputs,
            [self.status, self.gallery],
            # The device's lock lets one thing at a time compute, across visitors and trainers, and says who waits for
            # whom; gradio's own queue would only keep the second visitor waiting without a word.
            concurrency_limit=None,
            validator=self.form.validator(self.check),
            **private,
        )
        self.start.click(self._explain, self.inputs, self.status, queue=False, **private)
        self.cancel.click(self._cancel, None, None, queue=False, **private)
        self.dice.click(lambda: random.randrange(2**31), None, self.form.components["seed"], queue=False, **private)
        targets = [*self.form.components.values(), self.weight]
        self.reuse.upload(self._reuse, self.reuse, targets, **private)

    def adapters(self) -> list[tuple[str, str]]:
        """Return the choices of the adapter picker."""
        return [(text.BASE_ONLY, ""), *watch.adapters(self.site.queue, self.site.adapters)]

    def offer(self, present: str | None) -> Any:
        """Return the update of the adapter picker; what is chosen stays chosen, if it is still there."""
        choices = self.adapters()
        return gr.update(choices=choices, value=present if present in [value for _, value in choices] else "")

    def read(self, values: Values) -> GenerateConfig:
        """Return the configuration of the form. Raises `FormError`."""
        chosen = values[self.adapter]
        adapter = [f"{chosen}:{values[self.weight]}"] if chosen else []
        return self.form.read(values, adapter=adapter, out=self.site.outputs)

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against generating, by path of the setting."""
        try:
            self.read(values)
        except FormError as error:
            return error.problems
        return {}

    def _explain(self, values: Values) -> Any:
        """Say what is wrong with several settings together, or with one that cannot be seen."""
        problems = self.check(values)
        if not problems:
            return gr.skip()
        lines = [f"{text.label(path)}: {message}" if path else message for path, message in problems.items()]
        return gr.update(value=bar(Status("", error="; ".join(lines))), visible=True)

    def generate(self, values: Values, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Generate, yielding status and images as they come. A page that is closed ends its generation."""
        drawing = Drawing(self.read(values), self.site.queue.device, wait=not values[self.share])
        session = request.session_hash or ""
        self._drawings[session] = drawing
        shown: Status | None = None
        drawing.start()
        try:
            while shown is None or not shown.is_over:
                status = drawing.status
                if shown is None or status != shown:
                    pictures = gr.skip() if shown and status.saved == shown.saved else [str(p) for p in status.saved]
                    yield gr.update(value=bar(status), visible=True), pictures
                    shown = status
                else:
                    drawing.join(EVERY)
        finally:
            drawing.cancel()
            self._drawings.pop(session, None)

    def _cancel(self, request: gr.Request) -> None:
        drawing = self._drawings.get(request.session_hash or "")
        if drawing is not None:
            drawing.cancel()

    def _reuse(self, file: str) -> list[Any]:
        """Fill the form with the settings inside a PNG."""
        try:
            record = read_parameters(Path(file))
            config = GenerateConfig.model_validate(
                record["config"] if "config" in record else {k: record[k] for k in PLAIN_KEYS if k in record}
            )
        except ValidationError as error:
            reasons = "; ".join(text.problem(item) for item in error.errors(include_url=False))
            raise gr.Error(f"{Path(file).name}: {reasons}", print_exception=False) from error
        except DataError as error:
            raise gr.Error(str(error).replace(f"{Path(file).parent}/", ""), print_exception=False) from error
        adapter, weight, problem = self._find_adapter(config, record)
        name = Path(file).name
        gr.Info(text.REUSED_BUT.format(name=name, problem=problem) if problem else text.REUSED.format(name=name))
        shown = {path: to_component(self.form.field(path), getattr(config, path)) for path in self.form.components} | {
            "adapter": gr.update(choices=self.adapters(), value=adapter)
        }
        return [*shown.values(), weight]

    def _find_adapter(self, config: GenerateConfig, record: dict[str, Any]) -> tuple[str, float, str]:
        """Return (choice, weight, problem) for the adapter an image was made with, found by its digest."""
        used = record.get("adapters") or []
        if not used:
            return "", 1.0, ""
        if len(used) > 1:
            return "", 1.0, text.ADAPTERS_SEVERAL.format(count=len(used))
        weight = parse_adapter(config.adapter[0]).weight if config.adapter else float(used[0]["weight"])
        for run, found in self.site.queue.runs():
            if (found.get("artifact") or {}).get("sha256") == used[0]["sha256"] and watch.usable_artifact(run, found):
                return str(run.path), weight, ""
        return "", 1.0, text.ADAPTER_ABSENT.format(names=used[0]["name"])


def with_run(tab: GenerateTab, run: RunDir) -> list[Any]:
    """Return updates of (adapter, prompt, model) that make images with a run's result."""
    config = run.read()["config"]
    return [gr.update(choices=tab.adapters(), value=str(run.path)), config["data"]["prompt"], config["model"]]
