"""The choice of adapters: up to three with weight and steps, only those that fit the base model, with previews."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import adapters, library, text
from app.form import Values
from app.site import Site
from app.strip import file_url
from app.tabs.parts import QUIET
from app.tabs.step_range import StepRange
from lrdiff.generate_config import AdapterSpec

SLOTS = 3


class AdapterPicker:
    """Rows of an adapter, its weight and its steps, which appear with it; a row appears when the one above is used."""

    def __init__(self, site: Site) -> None:
        """Render inside the present gradio context."""
        self.site = site
        self.choices: list[gr.Dropdown] = []
        self.weights: list[gr.Slider] = []
        self.ranges: list[StepRange] = []
        self.rows: list[gr.Row] = []
        for number in range(SLOTS):
            with gr.Row(visible=number == 0, equal_height=True) as row:
                self.choices.append(
                    gr.Dropdown(
                        [(text.BASE_ONLY if number == 0 else text.NO_MORE, "")],
                        value="",
                        label=text.ADAPTER if number == 0 else text.ADAPTER_ALSO,
                        info=text.ADAPTER_INFO if number == 0 else None,
                        scale=3,
                        min_width=260,
                        elem_id="adapter" if number == 0 else None,
                    )
                )
                self.weights.append(
                    gr.Slider(
                        0,
                        2,
                        value=1,
                        step=0.05,
                        label=text.WEIGHT,
                        info=text.WEIGHT_INFO,
                        scale=2,
                        min_width=260,
                        visible=False,
                    )
                )
            self.rows.append(row)
            self.ranges.append(StepRange(visible=False))
            if number == 1:
                self.mix = gr.Slider(
                    0, 1, 0.5, step=0.05, label=text.MIX, info=text.MIX_INFO, visible=False, elem_id="mix"
                )
        self.card = gr.HTML(padding=False)
        folds = [part.fold for part in self.ranges]
        shown = [*self.rows[1:], *self.weights, *folds, self.mix, self.card]
        for choice in self.choices:
            choice.change(self._show, self.parts, shown, **QUIET)
        both = self.weights[:2]
        self.mix.input(lambda share: [round(1 - share, 2), share], self.mix, both, **QUIET)
        for weight in both:
            weight.input(lambda *weights: gr.update(**_mixed(*weights)), both, self.mix, **QUIET)

    @property
    def _limits(self) -> list[Component]:
        return [limit for part in self.ranges for limit in (part.begin, part.end)]

    @property
    def first(self) -> gr.Dropdown:
        """The first choice, which stands for the setting in the form."""
        return self.choices[0]

    @property
    def parts(self) -> list[Component]:
        """Everything that decides the adapters."""
        return [self.first, *self.rest]

    @property
    def rest(self) -> list[Component]:
        """All parts but the first choice, which belongs to the form."""
        return [*self.choices[1:], *self.weights, *self._limits]

    def specs(self, values: Values) -> list[str]:
        """Return the adapters as the settings hold them: PATH:WEIGHT, with @FROM-TO where it is not all steps."""
        rows = zip(self.choices, self.weights, self.ranges, strict=True)
        return [
            str(AdapterSpec(Path(values[choice]), values[weight], values[part.begin], values[part.end]))
            for choice, weight, part in rows
            if values[choice]
        ]

    def offer(self, model: str, *present: str | None) -> list[Any]:
        """Return updates of the choices and the card: what fits a base model."""
        found = adapters.fitting(
            adapters.adapters(self.site.queue, self.site.adapters), library.model_fingerprint(model)
        )
        listed = [(item.name, str(item.path)) for item in found]
        kept = [path if path in {value for _, value in listed} else "" for path in present]
        updates = [
            gr.update(choices=[(text.NO_MORE if number else text.BASE_ONLY, ""), *listed], value=value)
            for number, value in enumerate(kept)
        ]
        return [*updates, self._card(kept)]

    def write(self, model: str, chosen: Sequence[AdapterSpec]) -> dict[Component, Any]:
        """Return updates that show adapters."""
        specs = [*chosen[:SLOTS], *[None] * (SLOTS - len(chosen))]
        updates: dict[Component, Any] = {}
        offered = self.offer(model, *(str(spec.path) if spec else "" for spec in specs))[:-1]
        for number, (spec, update) in enumerate(zip(specs, offered, strict=True)):
            limits = self.ranges[number]
            row = (self.choices[number], self.weights[number], limits.begin, limits.end)
            values = (spec.weight, spec.begin, spec.end) if spec else (1.0, 0.0, 1.0)
            updates |= dict(zip(row, (update, *values), strict=True))
        return updates

    def _show(self, *present: Any) -> list[Any]:
        paths, strengths, limits = present[:SLOTS], present[SLOTS : 2 * SLOTS], present[2 * SLOTS :]
        used = [bool(path) for path in paths]
        rows = [gr.update(visible=used[n] or used[n + 1]) for n in range(SLOTS - 1)]
        weights = [gr.update(visible=shown) for shown in used]
        parts = [limits[2 * n : 2 * n + 2] != (0, 1) for n in range(SLOTS)]
        folds = [gr.update(visible=shown, open=part) for shown, part in zip(used, parts, strict=True)]
        return [
            *rows,
            *weights,
            *folds,
            gr.update(visible=used[0] and used[1], **_mixed(*strengths[:2])),
            self._card(paths),
        ]

    def _card(self, present: Sequence[str | None]) -> str:
        chosen = {path for path in present if path}
        if not chosen:
            return ""
        found = [item for item in adapters.adapters(self.site.queue, self.site.adapters) if str(item.path) in chosen]
        return "".join(card(item) for item in found)


def _mixed(first: float, second: float) -> dict[str, Any]:
    """Return where between two weights the slider stands; it stays where both are 0."""
    return {"value": second / (first + second)} if first + second > 0 else {}


def card(item: adapters.AdapterInfo) -> str:
    """Return an adapter as HTML: previews, and what it was made of."""
    alt = html.escape(text.PREVIEW_OF.format(name=item.name))
    images = "".join(
        f"<img src='{html.escape(file_url(path))}' alt='{alt}' loading='lazy'>" for path in item.previews[:4]
    )
    facts = [item.method, text.size(item.size)]
    facts += [text.STEPS_DONE.format(steps=item.steps)] if item.steps is not None else []
    words = f"<span>{html.escape(item.prompt)}</span>" if item.prompt else ""
    return (
        f"<div class='adapter'><div class='seen'>{images}</div><div><b>{html.escape(item.name)}</b>"
        f"<span>{html.escape(' · '.join(facts))}</span>{words}</div></div>"
    )
