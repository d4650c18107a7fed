"""The Train page: pictures, words, length, Start. Everything else comes from the configuration models."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import captions, estimate, pictures, presets, text
from app.form import Form, FormError, Values, to_component
from app.pictures import Picture
from app.site import Site
from lrdiff import backbones
from lrdiff.backbones import embedded
from lrdiff.errors import DataError, LrdiffError
from lrdiff.images import EXTENSIONS
from trainers.config import RunConfig
from trainers.data import find_samples
from trainers.registry import METHODS, run_config_class
from trainers.run import read_config
from trainers.rundir import RunDir

METHOD = "tensor-lora"
BASIC = frozenset({"data.images", "data.prompt", "model", "optim.steps"})
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class TrainTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.forms = {name: Form(run_config_class(name), skip=["data.images"]) for name in METHODS}
        self.form = self.forms[METHOD]
        self.subjects = pictures.subjects(site.subjects)
        gr.HTML(f"<p class='lead'>{text.LED}</p>" if self.subjects else "", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300) as self.images:
                self._render_images()
            with gr.Column(scale=6, min_width=300):
                self._render_words()
                self._render_length()
                self.advanced = self._render_advanced()
                self.estimate = gr.HTML(padding=False, elem_id="estimate")
                self.problems = gr.HTML(visible=False)
                with gr.Row():
                    self.start = gr.Button(text.START, variant="primary", size="lg", scale=3, elem_id="start")
                    self.probe = gr.Button(text.CHECK, size="lg", scale=1, min_width=130, elem_id="check")
        self._wire()

    @property
    def inputs(self) -> set[Any]:
        """Every component that decides a run."""
        parts = {part for form in self.forms.values() for part in form.components.values()}
        return {*parts, self.files, self.example, self.name, self.captions, self.method}

    def _render_images(self) -> None:
        gr.HTML(section(text.IMAGES_TITLE, text.IMAGES_ABOUT), elem_classes="section", padding=False)
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
        with gr.Accordion(text.CAPTIONS, open=False, elem_id="captions"):
            gr.HTML(f"<p class='note'>{text.CAPTIONS_INFO}</p>", padding=False)
            self.captions = gr.Dataframe(
                captions.rows(self._pictures(None, first)),
                headers=list(text.CAPTION_COLUMNS),
                column_count=2,
                datatype="str",
                type="array",
                static_columns=[0],
                column_widths=["34%", "66%"],
                interactive=True,
                wrap=True,
                label=text.CAPTIONS,
                show_label=False,
                buttons=[],
            )

    def _render_words(self) -> None:
        gr.HTML(section(text.PROMPT_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            subject = self.subjects.get(self.example.value)
            given = {"value": text.EXAMPLE_PROMPT.format(noun=subject.noun)} if subject else {}
            self._add("data.prompt", lines=2, max_lines=4, elem_id="prompt", **given)
            with gr.Row():
                self.method = gr.Radio(
                    list(self.forms), value=METHOD, label=text.METHOD, info=text.METHOD_INFO, elem_id="method"
                )
                field = self.form.field("model")
                model = gr.Dropdown(
                    embedded.names() or [field.default],
                    value=field.default,
                    label=text.label("model"),
                    info=text.help(field),
                    allow_custom_value=True,
                    elem_id="model",
                )
                for form in self.forms.values():
                    form.bind("model", model)

    def _render_length(self) -> None:
        gr.HTML(section(text.LENGTH_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            self.preset = gr.Radio(
                presets.choices(self.form, {}), value="standard", label=text.PRESET, info=text.PRESET_INFO
            )
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
        subject = self.subjects.get(self.example.value)
        held_out = str(subject.held_out or "") if subject else ""
        self.own: dict[str, gr.Column] = {}
        with gr.Accordion(text.ADVANCED, open=False, elem_id="advanced") as accordion:
            for prefix, title in text.GROUPS.items():
                if prefix == "method.":
                    for name, form in self.forms.items():
                        with gr.Column(visible=name == METHOD) as self.own[name]:
                            self._render_group(form.missing(prefix), f"{title}: {name}", form)
                elif paths := self.form.missing(prefix):
                    given = {"data.validation": {"value": held_out}}
                    self._render_group(paths, title, None, given)
        return accordion

    def _render_group(
        self, paths: list[str], title: str, form: Form | None, given: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        gr.HTML(section(title), elem_classes="section", padding=False)
        with gr.Row(elem_classes="settings"):
            for path in paths:
                add = self._add if form is None else form.add
                flagged = text.help_with_flag((form or self.form).field(path))
                add(path, info=flagged, min_width=220, **(given or {}).get(path, {}))

    def _wire(self) -> None:
        words = [self.form.components["data.prompt"], self.form.components["data.validation"]]
        shown = [self.sheet, self.captions, *words]
        picked = [self.files, self.example, self.captions]
        self.files.change(self._dropped, picked, [*shown, self.example], **PRIVATE)
        self.example.input(self._chosen, picked, shown, **PRIVATE)
        preset_parts = [self.form.components[path] for path in presets.PATHS]
        self.preset.input(self._apply_preset, self.preset, preset_parts, **PRIVATE)
        for part in preset_parts:
            part.input(self._match_preset, preset_parts, self.preset, **PRIVATE)  # pyright: ignore[reportAttributeAccessIssue]
        differing = [self.form.components[path] for path in self._differing()]
        own = [self.images, self.form.components["data.prompt"], *self.own.values(), *differing]
        self.method.change(self._show_method, self.method, own, queue=False, **PRIVATE)
        deciding = ("model", "optim.steps", "optim.accumulate", "data.batch_size", "watch.preview_every")
        changes = [self.form.components[path].change for path in deciding]  # pyright: ignore[reportAttributeAccessIssue]
        gr.on(
            [*changes, self.method.change],
            self.foresee,
            self.inputs,
            [self.estimate, self.preset],
            queue=False,
            **PRIVATE,
        )
        self.probe.click(
            self._measure, {*self.inputs}, [self.estimate, self.preset], concurrency_id="check", concurrency_limit=1,
            api_visibility="private", show_progress="minimal", show_progress_on=self.estimate,
        )  # fmt: skip

    def _dropped(self, files: list[str] | None, example: str, edited: captions.Rows) -> list[Any]:
        """Show what was dropped; own pictures take the place of an example and of the words that belong to it."""
        if files and example:
            return [*self._chosen(files, "", ()), ""]
        found = self._pictures(files, example)
        return [pictures.sheet(found), captions.rows(found, edited), *[gr.skip()] * 3]

    def _chosen(self, files: list[str] | None, example: str, edited: captions.Rows = ()) -> list[Any]:
        """Show an example subject, with the prompt and the validation pictures that belong to it."""
        found = self._pictures(files, example)
        shown = [pictures.sheet(found), captions.rows(found)]
        if not example:
            defaults = (self.form.field(path) for path in ("data.prompt", "data.validation"))
            return [*shown, *(to_component(field, field.default) for field in defaults)]
        subject = self.subjects[example]
        return [*shown, text.EXAMPLE_PROMPT.format(noun=subject.noun), str(subject.held_out or "")]

    def _sheet(self, files: list[str] | None, example: str) -> str:
        return pictures.sheet(self._pictures(files, example))

    def _pictures(self, files: list[str] | None, example: str) -> list[Picture]:
        paths = self.subjects[example].files if example else [Path(file) for file in files or []]
        return pictures.check(list(paths))

    def _apply_preset(self, key: str) -> list[Any]:
        return list(presets.settings(key, self.form).values()) if key else [gr.skip() for _ in presets.PATHS]

    def _match_preset(self, *values: Any) -> str:
        return presets.matching(values, self.form)

    def _differing(self) -> list[str]:
        """Return the shared settings whose defaults depend on the method."""
        shared = [path for path in self.form.fields if path in self.form.components and not path.startswith("method.")]
        return [p for p in shared if len({str(form.field(p).default) for form in self.forms.values()}) > 1]

    def _show_method(self, method: str) -> list[Any]:
        """Show what belongs to a method: its settings, its defaults, and pictures where it learns from any."""
        form = self.forms[method]
        seen = gr.update(visible=needs_images(method))
        own = [gr.update(visible=name == method) for name in self.own]
        defaults = [to_component(form.field(path), form.field(path).default) for path in self._differing()]
        return [seen, seen, *own, *defaults]

    def foresee(self, values: Values) -> list[Any]:
        """Return updates of what the page says about time, memory and disk."""
        method, queue = values[self.method], self.site.queue
        try:
            config = self.read(values).model_dump(mode="json")
        except FormError:
            return [gr.skip(), gr.skip()]
        times: dict[str, str] = {}
        measured = estimate.known(queue, method, config)
        if measured is not None:
            for key in presets.PRESETS:
                changed = {part: dict(config[part]) for part in ("optim", "watch")}
                for path, value in presets.settings(key, self.form).items():
                    part, name = path.split(".")
                    changed[part][name] = value
                times[key] = text.duration(round(estimate.seconds(measured, config | changed), -1))
        said = f"<p class='note'>{html.escape(estimate.sentence(queue, method, config))}</p>"
        return [said, gr.update(choices=presets.choices(self.form, times))]

    def _measure(self, values: Values) -> list[Any]:
        """Carry out the preflight with the pictures and settings of the form, and say what it found."""
        problems = self.check(values)
        if problems:
            return [_box(problems), gr.skip()]
        config = self.read(values).model_dump(mode="json")
        try:
            with self._run_files(values) as files:
                measured = estimate.measure(self.site.queue, values[self.method], config, files)
        except LrdiffError as error:
            return [_box({"": str(error)}), gr.skip()]
        said, choices = self.foresee(values)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in measured.lines)
        return [f"<p class='note good'>{text.CHECKED}</p>{said}<ul class='facts'>{lines}</ul>", choices]

    def _run_files(self, values: Values) -> Any:
        if not needs_images(values[self.method]):
            return nullcontext({})
        edited = captions.by_name(values[self.captions])
        return captions.with_captions(self._pictures(values[self.files], values[self.example]), edited)

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against starting a run, by path of the setting; the pictures are "data.images"."""
        problems: dict[str, str] = {}
        found = self._pictures(values[self.files], values[self.example]) if needs_images(values[self.method]) else []
        bad = [picture.path.name for picture in found if picture.problem]
        if bad:
            problems["data.images"] = text.FIX_PICTURES.format(names=", ".join(bad))
        elif not found and needs_images(values[self.method]):
            problems["data.images"] = text.NO_IMAGES
        try:
            config = self.read(values)
        except FormError as error:
            return problems | error.problems
        return problems | _check_paths(config)

    def read(self, values: Values) -> RunConfig[Any]:
        """Return the run configuration of the form. Raises `FormError`."""
        form = self.forms[values[self.method]]
        if needs_images(values[self.method]):
            return form.read(values, data__images=Path("images"))
        hidden = {p.replace(".", "__"): form.field(p).default for p in form.components if p.startswith("data.")}
        return form.read(values, **hidden)

    def submit(self, values: Values) -> RunDir:
        """Put the run into the queue. Raises `FormError` when something stands against it."""
        problems = self.check(values)
        if problems:
            raise FormError(problems)
        config = self.read(values).settled().model_dump(mode="json")
        with self._run_files(values) as files:
            label = values[self.name] or (values[self.example] if files else values[self.method]) or ""
            return self.site.queue.submit(values[self.method], config, files, label)

    def with_run(self, run: RunDir) -> dict[Component, Any]:
        """Return updates of the inputs that repeat a run: its method, settings and pictures.

        Raises:
            DataError: This page does not train the run's method.
        """
        record = run.read()
        if record["method"] not in self.forms:
            raise DataError(text.NOT_REPEATABLE.format(method=record["method"], path=run.path))
        form = self.forms[record["method"]]
        folder = Path(record["config"]["data"]["images"])
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        found = pictures.check(files)
        shown: dict[Component, Any] = dict(form.write(read_config(record)))
        shown |= {self.method: record["method"], self.files: [str(path) for path in files], self.example: ""}
        return shown | {self.captions: captions.rows(found), self.name: ""}

    def explain(self, problems: Mapping[str, str]) -> dict[Component, Any]:
        """Return updates that show problems, and open Advanced where one of them lies in it."""
        opened = gr.update(open=True) if set(problems) - BASIC else gr.skip()
        box = _box(problems) if problems else ""
        return {self.problems: gr.update(value=box, visible=bool(problems)), self.advanced: opened}  # pyright: ignore[reportReturnType]


def needs_images(method: str) -> bool:
    """Tell whether a method learns from pictures that a person gives."""
    return run_config_class(method).needs_images


def default_order(site: Site) -> tuple[str, dict[str, Any], dict[str, Path]] | None:
    """Return (method, configuration, files) of what a first visitor would start, or None without examples."""
    subject = next(iter(pictures.subjects(site.subjects).values()), None)
    if subject is None:
        return None
    config = run_config_class(METHOD)(method={}).model_dump(mode="json")
    return METHOD, config, {path.name: path for path in subject.files}


def _box(problems: Mapping[str, str]) -> str:
    lines = "".join(f"<li>{_named(path)}{html.escape(message)}</li>" for path, message in problems.items())
    return f"<div class='problems' role='alert'><p>{text.PROBLEMS}</p><ul>{lines}</ul></div>"


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


def section(title: str, about: str = "") -> str:
    """Return a heading of a part of a page, with a line below it."""
    return f"<h2>{title}</h2>" + (f"<p>{about}</p>" if about else "")
