"""How a run learns: words, method, base model, length; everything else, made from the configuration models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import text
from app.example import METHOD
from app.form import Form, Values, to_component
from app.pictures import Subject
from app.presets import OF_PICTURES
from app.tabs.length import Length
from app.tabs.parts import QUIET, section, settings_group
from lrdiff.backbones import embedded
from lrdiff.errors import LrdiffError
from trainers.config import RunConfig
from trainers.data import find_samples
from trainers.registry import METHODS, entry, run_config_class
from trainers.run import read_config

ELSEWHERE = frozenset({"alignprop"})
"""Methods with a page of their own to train them."""


class TrainSettings:
    """The settings of every method, those that all share only once."""

    def __init__(self, subject: Subject | None) -> None:
        """Render inside the present gradio context.

        Args:
            subject: The example whose words and validation pictures are filled in.
        """
        here = [name for name in METHODS if name not in ELSEWHERE]
        self.forms = {name: Form(run_config_class(name), skip=["data.images"]) for name in here}
        self.form = self.forms[METHOD]
        self.of_pictures: list[Any] = []
        self._subject = subject
        self._render_words()
        self._render_length()
        self.advanced = self._render_advanced()

    @property
    def inputs(self) -> list[Any]:
        """Every component that decides a run, but its pictures."""
        return [*{part for form in self.forms.values() for part in form.components.values()}, self.name, self.method]

    def component(self, path: str) -> Any:
        """Return the component of a shared setting."""
        return self.form.components[path]

    def _render_words(self) -> None:
        gr.HTML(section(text.PROMPT_TITLE, text.PROMPT_ABOUT), elem_classes="section", padding=False)
        with gr.Group():
            given = {"value": text.EXAMPLE_PROMPT.format(noun=self._subject.noun)} if self._subject else {}
            self._add("data.prompt", lines=2, max_lines=4, elem_id="prompt", **given)
            with gr.Row():
                self.method = gr.Dropdown(
                    list(self.forms), value=METHOD, label=text.METHOD, info=_about(METHOD), min_width=240,
                    elem_id="method",
                )  # fmt: skip
                field = self.form.field("model")
                model = gr.Dropdown(
                    embedded.names() or [field.default],
                    value=field.default,
                    label=text.label("model"),
                    info=text.help(field),
                    allow_custom_value=True,
                    min_width=240,
                    elem_id="model",
                )
                for form in self.forms.values():
                    form.bind("model", model)

    def _render_length(self) -> None:
        gr.HTML(section(text.LENGTH_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            self.length = Length(OF_PICTURES, self.form, text.PRESET_INFO)
            with gr.Row():
                self._add("optim.steps", min_width=140)
                self.name = gr.Textbox(label=text.RUN_NAME, info=text.RUN_NAME_INFO, max_lines=1, min_width=140)

    def _add(self, path: str, **style: Any) -> Component:
        """Render a setting that all methods share."""
        component = self.form.add(path, **style)
        for form in self.forms.values():
            if form is not self.form:
                form.bind(path, component)
        return component

    def _render_advanced(self) -> gr.Accordion:
        held_out = str(self._subject.held_out or "") if self._subject else ""
        self.own: dict[str, gr.Column] = {}
        with gr.Accordion(text.ADVANCED, open=False, elem_id="advanced") as accordion:
            for prefix, title in text.GROUPS.items():
                if prefix == "method.":
                    for name, form in self.forms.items():
                        with gr.Column(visible=name == METHOD) as self.own[name]:
                            settings_group(f"{title}: {name}", form, form.missing(prefix))
                elif paths := self.form.missing(prefix):
                    with gr.Column() as group:
                        settings_group(title, self.form, paths, self._add, {"data.validation": {"value": held_out}})
                    if prefix == "data.":
                        self.of_pictures.append(group)
        return accordion

    def wire(self) -> None:
        """Let presets and steps follow each other, and show what belongs to the method that is chosen."""
        self.length.wire()
        self.method.change(self._show_method, self.method, self._of_method, **QUIET)

    def of_subject(self, subject: Subject | None) -> list[Any]:
        """Return values of prompt and validation pictures for a subject, or the defaults."""
        if subject is None:
            fields = (self.form.field(path) for path in ("data.prompt", "data.validation"))
            return [to_component(field, field.default) for field in fields]
        return [text.EXAMPLE_PROMPT.format(noun=subject.noun), str(subject.held_out or "")]

    def _differing(self) -> list[str]:
        """Return the shared settings whose defaults depend on the method."""
        shared = [path for path in self.form.fields if path in self.form.components and not path.startswith("method.")]
        return [p for p in shared if len({str(form.field(p).default) for form in self.forms.values()}) > 1]

    def _sometimes(self) -> list[str]:
        """Return the shared settings that some methods do not read."""
        unread = {"data.prompt"}.union(*(run_config_class(name).unread for name in self.forms))
        return sorted(unread & self.form.components.keys())

    @property
    def _of_method(self) -> list[Any]:
        """What `_show_method` brings up to date."""
        differing = [self.component(path) for path in self._differing()]
        sometimes = [self.component(path) for path in self._sometimes()]
        return [self.method, *sometimes, *self.of_pictures, *self.own.values(), *differing]

    def _show_method(self, method: str) -> list[Any]:
        """Show what a method is, its settings, its defaults, and pictures where it learns from any."""
        form, seen = self.forms[method], gr.update(visible=needs_images(method))
        unread = run_config_class(method).unread
        sometimes = [
            gr.update(visible=path not in unread and (needs_images(method) or not path.startswith("data.")))
            for path in self._sometimes()
        ]
        own = [gr.update(visible=name == method) for name in self.own]
        defaults = [to_component(form.field(path), form.field(path).default) for path in self._differing()]
        return [gr.update(info=_about(method)), *sometimes, *(seen for _ in self.of_pictures), *own, *defaults]

    def read(self, values: Values) -> RunConfig[Any]:
        """Return the run configuration of the form. Raises `FormError`."""
        form = self.forms[values[self.method]]
        unread = {p.replace(".", "__"): form.field(p).default for p in run_config_class(values[self.method]).unread}
        if needs_images(values[self.method]):
            return form.read(values, data__images=Path("images"), **unread)
        hidden = {p.replace(".", "__"): form.field(p).default for p in form.components if p.startswith("data.")}
        return form.read(values, **hidden | unread)

    def with_record(self, record: dict[str, Any]) -> dict[Component, Any]:
        """Return updates that show the method and the settings of a run."""
        shown: dict[Component, Any] = dict(self.forms[record["method"]].write(read_config(record)))
        return {**shown, self.method: record["method"], self.name: ""}


def needs_images(method: str) -> bool:
    """Tell whether a method learns from pictures that a person gives."""
    return run_config_class(method).needs_images


def check_paths(config: RunConfig[Any]) -> dict[str, str]:
    """Look for what the settings point at, so that a run does not fail a minute after it was started."""
    problems: dict[str, str] = {}
    try:
        config.find_model()
    except LrdiffError as error:
        problems["model"] = str(error)
    if config.data.validation is not None:
        try:
            find_samples(config.data.validation, config.data.prompt)
        except LrdiffError as error:
            problems["data.validation"] = str(error).removeprefix("data.images: ")
    return problems


def _about(method: str) -> str:
    """Return what a method teaches, as a sentence."""
    summary = entry(method).summary
    return f"{summary[0].upper()}{summary[1:]}. {text.METHOD_HINTS.get(method, '')}".rstrip()
