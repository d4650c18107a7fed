"""The choice of rewards: up to three with their weights, and what each of them means."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from app import text_rewards
from app.form import Values
from app.tabs.parts import QUIET
from lrdiff.alignprop.specs import ARGUMENTS, Spec

SLOTS = 3
PROBE = "probe-a"
"""What reads by default: the other probe is then free to measure."""


class RewardPicker:
    """Rows of a reward, what it needs, and its weight; a row appears when the one above is used."""

    def __init__(self, first: Spec) -> None:
        """Render inside the present gradio context.

        Args:
            first: The reward that is chosen at first.
        """
        self.names: list[gr.Dropdown] = []
        self.arguments: list[gr.Textbox] = []
        self.weights: list[gr.Number] = []
        self.rows: list[gr.Row] = []
        known = [(label, name) for name, (label, _) in text_rewards.REWARDS.items()]
        for number in range(SLOTS):
            value = "" if number else first.name
            with gr.Row(visible=number < 2) as row:
                self.names.append(
                    gr.Dropdown(
                        [(text_rewards.NONE, ""), *known] if number else known,
                        value=value,
                        label=text_rewards.ALSO if number else text_rewards.REWARD,
                        info=_sentence(value),
                        scale=3,
                        min_width=200,
                        elem_id=f"reward-{number + 1}",
                    )
                )
                self.arguments.append(
                    gr.Textbox(
                        "" if number else first.argument,
                        label=text_rewards.ARGUMENT,
                        info=text_rewards.ARGUMENTS.get(value, ""),
                        max_lines=1,
                        scale=2,
                        min_width=180,
                        visible=bool(ARGUMENTS.get(value)),
                    )
                )
                self.weights.append(
                    gr.Number(
                        1.0 if number else first.weight,
                        label=text_rewards.WEIGHT,
                        info=text_rewards.WEIGHT_INFO,
                        step="any",  # pyright: ignore[reportArgumentType] - as the form does, for bounds in words
                        scale=1,
                        min_width=110,
                        visible=bool(value),
                    )
                )
            self.rows.append(row)
        with gr.Accordion(text_rewards.MEANINGS, open=False):
            gr.HTML(_meanings(), padding=False)
        for name, argument, weight in zip(self.names, self.arguments, self.weights, strict=True):
            name.change(_chosen, [name, argument], [name, argument, weight], **QUIET)
        for number, name in enumerate(self.names[1:-1], 2):
            name.change(_uncover, name, self.rows[number], **QUIET)

    @property
    def first(self) -> gr.Dropdown:
        """The first choice, which stands for the setting in the form."""
        return self.names[0]

    @property
    def parts(self) -> list[Component]:
        """Everything that decides the rewards."""
        return [*self.names, *self.arguments, *self.weights]

    def specs(self, values: Values) -> list[str]:
        """Return the rewards as the settings hold them: NAME[=ARGUMENT][:WEIGHT]."""
        found = []
        for name, argument, weight in zip(self.names, self.arguments, self.weights, strict=True):
            if values[name]:
                wanted = (values[argument] or "").strip() if ARGUMENTS[values[name]] else ""
                # An empty weight is 0, which is refused with the reward's name.
                factor = values[weight] or 0
                found.append(str(Spec(values[name], wanted, 1.0)) + (f":{factor:.10g}" if factor != 1 else ""))
        return found

    def write(self, rewards: Sequence[Spec]) -> dict[Component, Any]:
        """Return updates that show rewards, at most as many as there are rows."""
        shown = [*rewards, *[Spec("", "", 1.0)] * (SLOTS - len(rewards))]
        updates: dict[Component, Any] = {}
        for part, spec in zip(zip(self.names, self.arguments, self.weights, strict=True), shown, strict=True):
            updates |= dict(zip(part, (spec.name, spec.argument, spec.weight), strict=True))
        return updates


def _chosen(name: str, argument: str) -> list[Any]:
    """Explain a reward, and ask for what it needs."""
    filled = {"value": PROBE} if name == "prompt-match" and not argument else {}
    asked = gr.update(visible=bool(ARGUMENTS.get(name)), info=text_rewards.ARGUMENTS.get(name, ""), **filled)
    return [gr.update(info=_sentence(name)), asked, gr.update(visible=bool(name))]


def _uncover(name: str) -> Any:
    return gr.update(visible=bool(name))


def _sentence(name: str) -> str:
    return text_rewards.REWARDS[name][1] if name else ""


def _meanings() -> str:
    """Return every reward with its sentence, as HTML."""
    lines = (
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(said)}</dd>" for label, said in text_rewards.REWARDS.values()
    )
    return f"<dl class='meanings'>{''.join(lines)}</dl>"
