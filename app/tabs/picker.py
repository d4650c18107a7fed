"""The choice of adapters: up to three with their weights, only those that fit the base model, with their previews."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from app import adapters, library, text
from app.form import Values
from app.site import Site
from app.strip import file_url

SLOTS = 3
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class AdapterPicker:
    """Rows of an adapter and its weight; a weight appears with its adapter, a row when the one above is used."""

    def __init__(self, site: Site) -> None:
        """Render inside the present gradio context."""
        self.site = site
        self.choices: list[gr.Dropdown] = []
        self.weights: list[gr.Slider] = []
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
        self.card = gr.HTML(padding=False)
        for choice in self.choices:
            choice.change(self._show, self.choices, [*self.rows[1:], *self.weights, self.card], **QUIET)

    @property
    def first(self) -> gr.Dropdown:
        """The first choice, which stands for the setting in the form."""
        return self.choices[0]

    @property
    def parts(self) -> list[Component]:
        """Everything that decides the adapters."""
        return [*self.choices, *self.weights]

    @property
    def rest(self) -> list[Component]:
        """All parts but the first choice, which belongs to the form."""
        return [*self.choices[1:], *self.weights]

    def specs(self, values: Values) -> list[str]:
        """Return the adapters as the settings hold them: PATH:WEIGHT."""
        pairs = zip(self.choices, self.weights, strict=True)
        return [f"{values[choice]}:{values[weight]}" for choice, weight in pairs if values[choice]]

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

    def write(self, model: str, chosen: Sequence[tuple[str, float]]) -> dict[Component, Any]:
        """Return updates that show adapters: (path, weight) each."""
        paths = [path for path, _ in chosen[:SLOTS]] + [""] * (SLOTS - len(chosen))
        weights = [weight for _, weight in chosen[:SLOTS]] + [1.0] * (SLOTS - len(chosen))
        updates = self.offer(model, *paths)[:-1]
        return {**dict(zip(self.choices, updates, strict=True)), **dict(zip(self.weights, weights, strict=True))}

    def _show(self, *present: str) -> list[Any]:
        used = [bool(path) for path in present]
        rows = [gr.update(visible=used[n] or used[n + 1]) for n in range(SLOTS - 1)]
        return [*rows, *(gr.update(visible=shown) for shown in used), self._card(present)]

    def _card(self, present: Sequence[str | None]) -> str:
        chosen = {path for path in present if path}
        if not chosen:
            return ""
        found = [item for item in adapters.adapters(self.site.queue, self.site.adapters) if str(item.path) in chosen]
        return "".join(card(item) for item in found)


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
