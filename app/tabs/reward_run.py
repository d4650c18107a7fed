"""One run towards rewards: how far it is, its curves, what it drew before and after, and where to take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from app import text, text_rewards, watch
from app.site import Site
from app.strip import before_and_after
from app.tabs.parts import QUIET, section
from app.tabs.plot import plot
from app.tabs.pulse import Pulse, Update, stamp
from app.tabs.step_range import StepRange
from app.told import told

METHOD = "alignprop"
HEIGHT = 220


class RewardRun:
    """The right half of the Rewards page."""

    def __init__(self, site: Site) -> None:
        """Render inside the present gradio context."""
        self.site = site
        gr.HTML(section(text_rewards.RUN_TITLE), elem_classes="section", padding=False)
        self.name = gr.Dropdown(
            [], label=text_rewards.RUN, info=text_rewards.RUN_INFO, interactive=True, visible=False,
            elem_id="reward-run",
        )  # fmt: skip
        self.card = gr.HTML(_empty(), padding=False, elem_id="reward-card")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button(text.STOP, variant="stop", visible=False, min_width=90, elem_id="reward-stop")
        with gr.Column(visible=False) as self.details:
            gr.HTML(section(text_rewards.BEFORE_AFTER), elem_classes="section", padding=False)
            self.pictures = gr.HTML(padding=False, elem_id="before-after")
            self._render_use()
            self.plots: dict[str, gr.LinePlot] = {}
            with gr.Row(elem_classes="curves"):
                for key, (title, about) in text_rewards.CURVES.items():
                    with gr.Column(min_width=260):
                        gr.HTML(section(title, about), elem_classes="section", padding=False)
                        self.plots[key] = plot(f"curve-{key}", title, height=HEIGHT)
        self.seen = gr.State({})
        self.pulse = Pulse()
        self._wire()

    def _render_use(self) -> None:
        with gr.Column(visible=False) as self.taken:
            with gr.Group():
                self.strength = gr.Slider(
                    0, 2, 1, step=0.05, label=text_rewards.STRENGTH, info=text_rewards.STRENGTH_INFO, elem_id="strength"
                )
                self.range = StepRange()
            with gr.Row(elem_classes="actions"):
                self.use = gr.Button(text.USE, variant="primary", elem_id="use-reward")

    @property
    def looked_at(self) -> list[Any]:
        """What `refresh` takes."""
        return [self.name, self.seen]

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` brings up to date, in order."""
        parts = [self.name, self.card, self.stop, self.details, self.pictures, self.taken]
        return [*parts, *self.plots.values(), self.seen]

    @property
    def taken_along(self) -> list[Any]:
        """What says which adapter goes to the Generate page, and how: run, strength, first and last share of steps."""
        return [self.name, self.strength, self.range.begin, self.range.end]

    def _wire(self) -> None:
        self.pulse.wire(self.glance, [self.name], self.card, Update(self.refresh, self.looked_at, self.outputs))
        self.name.input(self.refresh, self.looked_at, self.outputs, **QUIET)
        self.stop.click(told(self._stop), self.name, None, **QUIET).then(
            self.refresh, self.looked_at, self.outputs, **QUIET
        )

    def _stop(self, name: str) -> None:
        self.site.queue.stop(name)
        gr.Info(text.STOP_ASKED.format(name=name))

    def choices(self) -> list[tuple[str, str]]:
        """Return (label, name) of every run towards rewards."""
        return watch.choices(self.site.queue, METHOD)

    def glance(self, name: str | None) -> tuple[str, str]:
        """Return the head of the run that is shown, else of the newest, and the stamp of everything else."""
        listed, view = self._look(name)
        return (_empty() if view is None else watch.card(view)), stamp(_seen(listed, view))

    def _look(self, name: str | None) -> tuple[list[tuple[str, str]], watch.Snapshot | None]:
        listed = self.choices()
        names = [run for _, run in listed]
        name = name if name in names else next(iter(names), None)
        return listed, None if name is None else watch.look(self.site.queue, name)

    def refresh(self, name: str | None, before: dict[str, Any]) -> list[Any]:
        """Return the updates of `outputs`; what looks as it did before is left alone.

        Args:
            name: As `glance` takes it.
            before: What this visitor's page shows at present.
        """
        listed, view = self._look(name)
        if view is None:
            hidden, flat = gr.update(visible=False), [gr.skip()] * len(self.plots)
            return [hidden, _empty(), hidden, hidden, gr.skip(), hidden, *flat, {}]
        seen = _seen(listed, view)

        def changed(*keys: str) -> bool:
            return seen["name"] != before.get("name") or any(seen[key] != before.get(key) for key in keys)

        found = curves(view.metrics) if changed("metrics") else {}
        return [
            gr.update(choices=listed, value=seen["name"], visible=True) if changed("listed") else gr.skip(),
            watch.card(view),
            gr.update(visible=seen["can_stop"]) if changed("can_stop") else gr.skip(),
            gr.update(visible=True) if changed() else gr.skip(),
            before_and_after(view.run) if changed("previews") else gr.skip(),
            gr.update(visible=seen["has_artifact"]) if changed("has_artifact") else gr.skip(),
            *(watch.drawn(found[key]) if found else gr.skip() for key in self.plots),
            seen,
        ]


def _seen(listed: list[tuple[str, str]], view: watch.Snapshot | None) -> dict[str, Any]:
    """Return what decides how the page looks, without the head of the run."""
    if view is None:
        return {}
    return {
        "name": view.name,
        "listed": listed,
        "can_stop": view.state in ("queued", "running") and not view.is_stopping,
        "has_artifact": view.has_artifact,
        "previews": [path for path, _ in watch.previews(view.run)],
        "metrics": len(view.metrics),
    }


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the points of every chart, by its key in `text_rewards.CURVES`."""
    keys = dict.fromkeys(key for line in metrics for key in line)
    found: dict[str, pd.DataFrame] = {}
    for name, (title, _) in text_rewards.CURVES.items():
        several = {key: key.removeprefix(f"{name}_") for key in keys if key.startswith(f"{name}_")}
        found[name] = watch.chart(metrics, several or {name: title})
    return found


def _empty() -> str:
    return f"<div class='empty waiting'>{text_rewards.EMPTY}</div>"
