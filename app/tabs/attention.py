"""The Attention page: look at what a layer attends to, fine-tune with less, compare pictures and times."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from app import adapters, limits, text, text_attention
from app.block_map_view import view
from app.block_maps import MapConfig, attention, look
from app.drawing import PATIENCE, Drawing, Status, bar, waits
from app.form import Form, FormError, Values
from app.library import model_fingerprint
from app.site import Site
from app.tabs.parts import PRIVATE, QUIET, problem_box, section
from app.tabs.train_settings import TrainSettings
from lrdiff.backbones import embedded
from lrdiff.errors import LrdiffError
from lrdiff.generate_config import GenerateConfig
from trainers.sla.config import Sparsity

log = logging.getLogger(__name__)

METHOD = "sla"
EVERY = 0.3
"""Seconds between two looks at a generation under way."""
LONG = "toys-dit"
"""The model that the page begins with, where it is present: of the shipped ones it has the most tokens."""
SMALL = {"topk": 0.25, "skip": 0.25, "block_q": 16, "block_k": 16}
"""What the page begins with: the smallest blocks, of which the other shipped model's longest layer has four."""


class AttentionTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site, training: TrainSettings) -> None:
        """Render the page inside the present gradio context.

        Args:
            site: Runs, adapters, and the folder for what is drawn.
            training: The settings of a run, which the choice of blocks is handed to.
        """
        self.site, self.training = site, training
        self.form = Form(MapConfig)
        self._drawings: dict[str, Drawing] = {}
        self.known = gr.State(None)
        gr.HTML(f"<p class='lead'>{text_attention.LEAD}</p>", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._render_look()
            with gr.Column(scale=6, min_width=300):
                self.map = gr.HTML(
                    f"<div class='empty waiting'>{text_attention.MAP_EMPTY}</div>", elem_id="map", padding=False
                )
                self._render_training()
        self._render_comparison()
        self._wire()

    @property
    def inputs(self) -> set[Block]:
        """Every component of the page that decides something."""
        return {*self.form.components.values(), self.adapter}

    def component(self, path: str) -> Any:
        """Return the component of a setting."""
        return self.form.components[path]

    def _render_look(self) -> None:
        gr.HTML(section(text_attention.LOOK_TITLE, text_attention.LOOK_ABOUT), elem_classes="section", padding=False)
        with gr.Group():
            field, names = self.form.field("model"), embedded.names()
            model = gr.Dropdown(
                names or [field.default], value=LONG if LONG in names else field.default, label=text.label("model"),
                info=text.help(field), allow_custom_value=True, elem_id="map-model",
            )  # fmt: skip
            self.form.bind("model", model)
            self.form.add("prompt", max_lines=3, elem_id="map-prompt")
            layer = gr.Dropdown(
                [(text_attention.LAYER_LONGEST, "")], value="", label=text.label("layer"),
                info=text_attention.LAYER_INFO, elem_id="layer",
            )  # fmt: skip
            self.form.bind("layer", layer)
            at = gr.Slider(0, 1, 0.5, step=0.05, label=text.label("at"), info=text.help(self.form.field("at")))
            self.form.bind("at", at)
        with gr.Group():
            with gr.Row():
                self.form.add("topk", value=SMALL["topk"], min_width=130)
                self.form.add("scope", min_width=130)
            with gr.Row():
                for path in ("block_q", "block_k"):
                    self.form.add(path, value=SMALL[path], min_width=130)
            self.form.add("skip", value=SMALL["skip"])
        gr.HTML(f"<p class='note'>{text_attention.START_SIZES}</p>", padding=False)
        with gr.Accordion(text.MORE_SETTINGS, open=False), gr.Row(elem_classes="settings"):
            for path in self.form.missing():
                self.form.add(path, min_width=200)
        with gr.Row(elem_classes="go"):
            self.draw = gr.Button(text_attention.DRAW, variant="primary", size="lg", elem_id="draw-map")

    def _render_training(self) -> None:
        gr.HTML(section(text_attention.TRAIN_TITLE, text_attention.TRAIN_ABOUT), elem_classes="section", padding=False)
        self.problems = gr.HTML(visible=False, elem_id="sla-problems")
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button(text_attention.START, variant="primary", elem_id="start-sla")
            self.first = gr.Button(text_attention.LOOK_FIRST, elem_id="see-settings")

    def _render_comparison(self) -> None:
        gr.HTML(
            section(text_attention.COMPARE_TITLE, text_attention.COMPARE_ABOUT), elem_classes="section", padding=False
        )
        low, high = text_attention.CROSSOVER
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self.adapter = gr.Dropdown(
                    [(text_attention.NO_ADAPTER, "")], value="", label=text_attention.ADAPTER,
                    info=text_attention.ADAPTER_INFO, elem_id="sla-adapter",
                )  # fmt: skip
                gr.HTML(f"<p class='note'>{text_attention.SHORT.format(low=low, high=high)}</p>", padding=False)
                with gr.Row(elem_classes="actions"):
                    self.compare = gr.Button(text_attention.COMPARE, variant="primary", elem_id="compare-sla")
                    self.cancel = gr.Button(text_attention.CANCEL)
            with gr.Column(scale=6, min_width=300):
                self.status = gr.HTML(
                    f"<div class='empty waiting'>{text_attention.BOTH_EMPTY}</div>",
                    elem_id="sla-status", padding=False,
                )  # fmt: skip
                with gr.Column(visible=False) as self.both:
                    gr.HTML(f"<p class='note'>{text_attention.SLIDER}</p>", padding=False)
                    self.slider = gr.ImageSlider(
                        label=text_attention.SLIDER, show_label=False, type="filepath", interactive=False,
                        buttons=["fullscreen"], elem_id="sla-slider",
                    )  # fmt: skip
                    # The line of gradio's component takes no key press; this slider does, and moves it. The line ends
                    # where the component does, not the picture: the style sheet gives both one width.
                    self.divide = gr.Slider(
                        0, 100, 50, step=1, label=text_attention.DIVIDE, info=text_attention.DIVIDE_INFO,
                        elem_id="sla-divide",
                    )  # fmt: skip

    def _wire(self) -> None:
        self.draw.click(
            self.draw_map, self.inputs, [self.map, self.component("layer"), self.known],
            concurrency_limit=None, validator=self.form.validator(self.check), **PRIVATE,
        )  # fmt: skip
        self.draw.click(None, js="() => {document.querySelector('#map').scrollIntoView({block: 'nearest'})}")
        of_model = [self.offered, self.component("layer"), self.known]
        self.component("model").change(self._other_model, self.looked_at, of_model, **QUIET)
        self.component("scope").change(_with_scope, self.component("scope"), self.component("skip"), **QUIET)
        self.compare.click(
            self.draw_both, self.inputs, [self.status, self.both, self.slider, self.divide],
            concurrency_limit=None, validator=self.form.validator(self.check), **PRIVATE,
        )  # fmt: skip
        self.cancel.click(self._cancel, None, None, **QUIET)
        self.divide.change(_divided, self.divide, self.slider, trigger_mode="always_last", **QUIET)

    @property
    def looked_at(self) -> list[Any]:
        """What `offer` takes."""
        return [self.component("model"), self.adapter]

    @property
    def offered(self) -> gr.Dropdown:
        """What `offer` brings up to date."""
        return self.adapter

    def offer(self, model: str, present: str | None) -> Any:
        """Return the update of the fine-tunes of a model: what is chosen stays if it still fits, else the newest."""
        base = model_fingerprint(model)
        found = [
            (item.name, str(item.path))
            for item in adapters.adapters(self.site.queue, self.site.adapters)
            if (item.method, item.base_fingerprint) == (METHOD, base)
        ]
        listed = found or [(text_attention.NO_ADAPTER, "")]
        kept = present if present in {path for _, path in listed} else listed[0][1]
        return gr.update(choices=listed, value=kept)

    def _other_model(self, model: str, present: str | None) -> list[Any]:
        """Forget what was known of another model."""
        longest = gr.update(choices=[(text_attention.LAYER_LONGEST, "")], value="")
        return [self.offer(model, present), longest, None]

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against drawing, by path of the setting."""
        try:
            limits.check(self._pictures(self.form.read(values)))
        except FormError as error:
            known = {"width": "size", "height": "size"}
            return {known.get(path, path): message for path, message in error.problems.items()}
        return {}

    def _pictures(self, config: MapConfig, **changes: Any) -> GenerateConfig:
        """Return the settings of a picture of the same model, prompt and seed."""
        shared = {"model", "seed", "steps", "guidance", "device", "dtype"}
        made = config.model_dump(include=shared)
        sides = {"width": config.size, "height": config.size}
        return GenerateConfig(**made, **sides, prompt=(config.prompt,), out=self.site.outputs, **changes)

    def draw_map(self, values: Values) -> Iterator[list[Any]]:
        """Look at a layer once the device is free, yielding the map, the layers, and what is known of the model."""
        config: MapConfig = self.form.read(values)
        device = self.site.queue.device
        while True:
            with device.held() as free:
                if free:
                    yield [bar(Status(text_attention.LOADING)), gr.skip(), gr.skip()]
                    yield self._seen(config)
                    return
            yield [bar(Status(waits(device))), gr.skip(), gr.skip()]
            time.sleep(PATIENCE)

    def _seen(self, config: MapConfig) -> list[Any]:
        try:
            seen = look(config)
        except LrdiffError as error:
            return [problem_box({"": str(error)}, text_attention.NOT_DRAWN), gr.skip(), gr.skip()]
        except Exception as error:
            log.exception("no map")
            said = text.FAILED_UNEXPECTEDLY.format(error=f"{type(error).__name__}: {error}")
            return [problem_box({"": said}, text_attention.NOT_DRAWN), gr.skip(), gr.skip()]
        choices = [(text_attention.LAYER_LONGEST, ""), *((_named(n, count), n) for n, count in seen.tokens.items())]
        known = {"model": config.model, "tokens": seen.tokens}
        return [view(seen), gr.update(choices=choices), known]

    def handed(self, values: Values) -> dict[Component, Any]:
        """Return what the settings of a run become with the model and the blocks of this page.

        Args:
            values: Of this page's components.
        """
        form = self.training.forms[METHOD]
        given = {form.components[f"method.{path}"]: values[self.component(path)] for path in Sparsity.model_fields}
        return {**given, form.components["model"]: values[self.component("model")], self.training.method: METHOD}

    def check_training(self, values: Values) -> None:
        """Refuse a fine-tune in which nothing would be sparse, before it is put into the queue.

        Raises:
            FormError: No map of the model was drawn yet, a setting is wrong, or every block would be critical.
        """
        config: MapConfig = self.form.read(values)
        known = values[self.known]
        if not known or known["model"] != config.model:
            raise FormError({"": text_attention.MAP_FIRST.format(model=config.model)})
        if config.topk < 1.0 and not any(map(attention(config).sparsity, known["tokens"].values())):
            most = text.plural(text_attention.TOKENS, max(known["tokens"].values()))
            raise FormError({"": text_attention.WOULD_NOT.format(model=config.model, tokens=most)})

    def explain(self, problems: dict[str, str]) -> Any:
        """Return the update that shows what stands against a fine-tune, or nothing any more."""
        box = problem_box(problems, text_attention.NOT_STARTED) if problems else ""
        return gr.update(value=box, visible=bool(problems))

    def draw_both(self, values: Values, request: gr.Request) -> Iterator[list[Any]]:
        """Draw with full attention, then with the fine-tune, yielding the status and at last both pictures."""
        config: MapConfig = self.form.read(values)
        adapter, rest = values[self.adapter], [gr.skip()] * 3
        if not adapter or config.steps < 2:
            problem = text_attention.CHOOSE if not adapter else text_attention.TWO_STEPS
            yield [problem_box({"": problem}, text_attention.NOT_COMPARED), *rest]
            return
        pair = [self._pictures(config), self._pictures(config, adapter=(f"{adapter}:1",))]
        drawing = Drawing(pair, self.site.queue.device)
        session = request.session_hash or ""
        self._drawings[session] = drawing
        try:
            with closing(drawing.follow(EVERY)) as states:
                for status in states:
                    if not status.is_over or len(status.saved) < len(pair):
                        yield [bar(status), *rest]
                        continue
                    full, sparse = (pace.per_step * config.steps for pace in drawing.paces)
                    files = tuple(map(str, status.saved))
                    yield [_times(full, sparse), gr.update(visible=True), files, 50]
        finally:
            self._drawings.pop(session, None)

    def _cancel(self, request: gr.Request) -> None:
        drawing = self._drawings.get(request.session_hash or "")
        if drawing is not None:
            drawing.cancel()


def _divided(share: float) -> Any:
    return gr.update(slider_position=share)


def _named(layer: str, tokens: int) -> str:
    return text_attention.LAYER_CHOICE.format(name=layer, tokens=text.plural(text_attention.TOKENS, tokens))


def _with_scope(scope: str) -> Any:
    """Hide the share of negligible blocks where no block is skipped, and let it be its default there."""
    if scope == "marginal":
        return gr.update(visible=True)
    return gr.update(visible=False, value=Sparsity.model_fields["skip"].default)


def _times(full: float, sparse: float) -> str:
    """Return how long a picture took with each, as HTML."""
    factor = full / sparse
    if abs(factor - 1) < text_attention.WORTH:
        verdict = text_attention.SAME
    elif factor > 1:
        verdict = text_attention.FASTER.format(factor=factor)
    else:
        verdict = text_attention.SLOWER.format(factor=1 / factor)
    said = text_attention.TIMES.format(full=full, sparse=sparse, verdict=verdict)
    return f"<p class='count' role='status'>{said}</p>"
