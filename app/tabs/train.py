"""The Train page: pictures, words, length, Start. Everything else comes from the configuration model."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from app import pictures, text
from app.form import Form, FormError, Values, to_component
from app.pictures import Picture
from app.site import Site
from lrdiff import backbones
from lrdiff.backbones import embedded
from lrdiff.errors import LrdiffError
from lrdiff.images import EXTENSIONS
from trainers.config import RunConfig
from trainers.data import find_samples
from trainers.registry import run_config_class
from trainers.rundir import RunDir

METHOD = "tensor-lora"

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"optim.steps": 100, "watch.preview_every": 25, "watch.evaluate_every": 25},
    "standard": {},
    "thorough": {"optim.steps": 1000, "watch.preview_every": 200, "watch.checkpoint_every": 200},
}
"""What a preset changes; the rest of the fields that any preset changes goes back to the model's default."""


class TrainTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site, method: str = METHOD) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.method = method
        self.form = Form(run_config_class(method), skip=["data.images"])
        self.subjects = pictures.subjects(site.subjects)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._render_images()
            with gr.Column(scale=6, min_width=300):
                self._render_words()
                self._render_length()
                self.advanced = self._render_advanced()
                self.problems = gr.HTML(visible=False)
                self.start = gr.Button(text.START, variant="primary", size="lg", elem_id="start")
        self._wire()

    @property
    def inputs(self) -> set[Block]:
        """Every component that decides a run."""
        return {*self.form.components.values(), self.files, self.example, self.name}

    def _render_images(self) -> None:
        gr.HTML(_section(text.IMAGES_TITLE, text.IMAGES_ABOUT), elem_classes="section", padding=False)
        # The trainer checks the kinds itself, by content: a filter here would drop files without a word.
        self.files = gr.File(label=text.DROP, file_count="multiple", type="filepath", height=150, elem_id="files")
        choices = [(text.EXAMPLE_NONE, "")]
        for name, subject in self.subjects.items():
            shown = sum(path.suffix.lower() in EXTENSIONS for path in subject.files)
            count = text.plural(text.PICTURES, shown)
            choices.append((text.EXAMPLE_LABEL.format(name=name, noun=subject.noun, count=count), name))
        info = None if self.subjects else text.NO_EXAMPLES
        first = next(iter(self.subjects), "")
        self.example = gr.Dropdown(
            choices, value=first, label=text.EXAMPLE, info=info, interactive=bool(self.subjects), elem_id="example"
        )
        self.sheet = gr.HTML(self._sheet(None, first), padding=False)

    def _render_words(self) -> None:
        gr.HTML(_section(text.PROMPT_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            subject = self.subjects.get(self.example.value)
            given = {"value": text.EXAMPLE_PROMPT.format(noun=subject.noun)} if subject else {}
            self.form.add("data.prompt", lines=2, max_lines=4, elem_id="prompt", **given)
            field = self.form.field("model")
            self.form.bind(
                "model",
                gr.Dropdown(
                    embedded.names() or [field.default],
                    value=field.default,
                    label=text.label("model"),
                    info=text.help(field),
                    allow_custom_value=True,
                    elem_id="model",
                ),
            )

    def _render_length(self) -> None:
        gr.HTML(_section(text.LENGTH_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            names = [
                (text.PRESET_STEPS.format(name=text.PRESETS[key], steps=self._preset(key)["optim.steps"]), key)
                for key in PRESETS
            ]
            self.preset = gr.Radio(
                [*names, (text.PRESET_CUSTOM, "")], value="standard", label=text.PRESET, info=text.PRESET_INFO
            )
            with gr.Row():
                self.form.add("optim.steps", min_width=140)
                self.name = gr.Textbox(label=text.RUN_NAME, info=text.RUN_NAME_INFO, max_lines=1, min_width=140)

    def _render_advanced(self) -> gr.Accordion:
        subject = self.subjects.get(self.example.value)
        held_out = str(subject.held_out or "") if subject else ""
        with gr.Accordion(text.ADVANCED, open=False, elem_id="advanced") as accordion:
            for prefix, title in text.GROUPS.items():
                missing = self.form.missing(prefix)
                if missing:
                    gr.HTML(_section(title), elem_classes="section", padding=False)
                    with gr.Row(elem_classes="settings"):
                        for path in missing:
                            given = {"value": held_out} if path == "data.validation" else {}
                            flagged = text.help_with_flag(self.form.field(path))
                            self.form.add(path, info=flagged, min_width=220, **given)
        return accordion

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        words = [self.form.components["data.prompt"], self.form.components["data.validation"]]
        self.files.change(self._dropped, [self.files, self.example], [self.sheet, *words, self.example], **private)
        self.example.input(self._chosen, [self.files, self.example], [self.sheet, *words], **private)
        preset_parts = [self.form.components[path] for path in _preset_paths()]
        self.preset.input(self._apply_preset, self.preset, preset_parts, **private)
        for part in preset_parts:
            part.input(self._match_preset, preset_parts, self.preset, **private)  # pyright: ignore[reportAttributeAccessIssue]

    def _dropped(self, files: list[str] | None, example: str) -> list[Any]:
        """Show what was dropped; own pictures take the place of an example and of the words that belong to it."""
        if files and example:
            return [*self._chosen(files, ""), ""]
        return [self._sheet(files, example), *[gr.skip()] * 3]

    def _chosen(self, files: list[str] | None, example: str) -> list[Any]:
        """Show an example subject, with the prompt and the validation pictures that belong to it."""
        sheet = self._sheet(files, example)
        if not example:
            defaults = (self.form.field(path) for path in ("data.prompt", "data.validation"))
            return [sheet, *(to_component(field, field.default) for field in defaults)]
        subject = self.subjects[example]
        return [sheet, text.EXAMPLE_PROMPT.format(noun=subject.noun), str(subject.held_out or "")]

    def _sheet(self, files: list[str] | None, example: str) -> str:
        return pictures.sheet(self._pictures(files, example))

    def _pictures(self, files: list[str] | None, example: str) -> list[Picture]:
        paths = self.subjects[example].files if example else [Path(file) for file in files or []]
        return pictures.check(list(paths))

    def _preset(self, key: str) -> dict[str, Any]:
        return {path: PRESETS[key].get(path, self.form.field(path).default) for path in _preset_paths()}

    def _apply_preset(self, key: str) -> list[Any]:
        return list(self._preset(key).values()) if key else [gr.skip() for _ in _preset_paths()]

    def _match_preset(self, *values: Any) -> str:
        """Return the preset that the settings are, so that the page never claims one that was changed."""
        return next((key for key in PRESETS if list(self._preset(key).values()) == list(values)), "")

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against starting a run, by path of the setting; the pictures are "data.images"."""
        problems: dict[str, str] = {}
        found = self._pictures(values[self.files], values[self.example])
        bad = [picture.path.name for picture in found if picture.problem]
        if bad:
            problems["data.images"] = text.FIX_PICTURES.format(names=", ".join(bad))
        elif not found:
            problems["data.images"] = text.NO_IMAGES
        try:
            config = self.read(values)
        except FormError as error:
            return problems | error.problems
        return problems | _check_paths(config)

    def read(self, values: Values) -> RunConfig[Any]:
        """Return the run configuration of the form. Raises `FormError`."""
        return self.form.read(values, data__images=Path("images"))

    def submit(self, values: Values) -> RunDir:
        """Put the run into the queue. Raises `FormError` when something stands against it."""
        problems = self.check(values)
        if problems:
            raise FormError(problems)
        config = self.read(values).model_dump(mode="json")
        files = pictures.named(self._pictures(values[self.files], values[self.example]))
        return self.site.queue.submit(self.method, config, files, values[self.name] or values[self.example] or "")

    def explain(self, problems: Mapping[str, str]) -> dict[Component, Any]:
        """Return updates that show problems, and open Advanced where one of them lies in it."""
        lines = "".join(f"<li>{_named(path)}{html.escape(message)}</li>" for path, message in problems.items())
        box = f"<div class='problems' role='alert'><p>{text.PROBLEMS}</p><ul>{lines}</ul></div>" if problems else ""
        basic = {"data.images", "data.prompt", "model", "optim.steps"}
        opened = gr.update(open=True) if set(problems) - basic else gr.skip()
        return {self.problems: gr.update(value=box, visible=bool(problems)), self.advanced: opened}  # pyright: ignore[reportReturnType]


def _check_paths(config: RunConfig[Any]) -> dict[str, str]:
    """Look for what the settings point at, so that a run does not fail a minute after it was started."""
    problems: dict[str, str] = {}
    try:
        backbones.find(config.model)
    except LrdiffError as error:
        problems["model"] = str(error)
    if config.data.validation is not None:
        try:
            find_samples(config.data.validation, config.data.prompt)
        except LrdiffError as error:
            problems["data.validation"] = str(error).removeprefix("data.images: ")
    return problems


def _named(path: str) -> str:
    label = text.IMAGES_TITLE if path == "data.images" else text.label(path)
    return f"<b>{label}:</b> " if path else ""


def _preset_paths() -> list[str]:
    return list(dict.fromkeys(path for preset in PRESETS.values() for path in preset))


def _section(title: str, about: str = "") -> str:
    return f"<h2>{title}</h2>" + (f"<p>{about}</p>" if about else "")
