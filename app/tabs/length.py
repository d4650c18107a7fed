"""How thorough a run is, as a choice, and what that will take: the parts that every page which trains has."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gradio as gr

from app import estimate, text
from app.form import Form
from app.jobs import Queue
from app.presets import Presets
from app.tabs.parts import QUIET, problem_box
from lrdiff.errors import LrdiffError

Config = Mapping[str, Any]
Files = AbstractContextManager[Mapping[str, Path]]


class Length:
    """A choice of presets that follows the settings it fills in."""

    def __init__(self, presets: Presets, form: Form, about: str) -> None:
        """Render inside the present gradio context; the settings get their components later.

        Args:
            presets: What there is to choose from.
            form: Of the run's configuration.
            about: What the choice does.
        """
        self.presets, self.form = presets, form
        self.choice = gr.Radio(presets.choices(form, {}), value="standard", label=text.PRESET, info=about)

    def wire(self) -> None:
        """Let choice and settings follow each other."""
        parts: list[Any] = [self.form.components[path] for path in self.presets.paths]
        self.choice.input(self._apply, self.choice, parts, **QUIET)
        for part in parts:
            part.input(self._match, parts, self.choice, **QUIET)

    def _apply(self, key: str) -> list[Any]:
        if not key:
            return [gr.skip() for _ in self.presets.paths]
        return list(self.presets.settings(key, self.form).values())

    def _match(self, *values: Any) -> str:
        return self.presets.matching(values, self.form)

    def foresee(self, queue: Queue, method: str, config: Config) -> list[Any]:
        """Return what a run will take as HTML, and the update of the choice with the time of every preset.

        Args:
            queue: Beside whose runs measurements are kept.
            method: Registry name.
            config: The run's configuration as JSON values.
        """
        times: dict[str, str] = {}
        measured = estimate.known(queue, method, config)
        if measured is not None:
            for key in self.presets.changes:
                changed = {part: dict(config[part]) for part in ("optim", "watch")}
                for path, value in self.presets.settings(key, self.form).items():
                    part, name = path.split(".")
                    changed[part][name] = value
                times[key] = text.duration(round(estimate.seconds(measured, {**config, **changed}), -1))
        said = f"<p class='note'>{html.escape(estimate.sentence(queue, method, config))}</p>"
        return [said, gr.update(choices=self.presets.choices(self.form, times))]

    def measure(self, queue: Queue, method: str, config: dict[str, Any], files: Files) -> list[Any]:
        """Carry out the preflight of a run, and return what `foresee` does with what was found.

        Args:
            queue: Whose device is used.
            method: Registry name.
            config: The run's configuration as JSON values.
            files: Pictures and captions, by the names they get.
        """
        try:
            with files as given:
                measured = estimate.measure(queue, method, config, given)
        except LrdiffError as error:
            return [problem_box({"": str(error)}, text.NOT_CHECKED), gr.skip()]
        said, choices = self.foresee(queue, method, config)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in measured.lines)
        return [f"<p class='note good'>{text.CHECKED}</p>{said}<ul class='facts'>{lines}</ul>", choices]
