"""Keeps a part of the page up to date: a small answer every two seconds, the large one only when something changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.tabs.parts import QUIET

EVERY = 2.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Update:
    """What is asked for when a stamp is another one.

    Attributes:
        act: Brings a part of the page up to date.
        inputs: What it takes.
        outputs: What it brings up to date.
    """

    act: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


class Pulse:
    """A timer, and the stamps of what it saw last.

    gradio makes every component of an answer anew, also one that is left alone: an answer with 20 of them takes 14 ms
    of the processor, one with two takes 3. Every visitor looks all the time, and mostly little has happened.
    """

    def __init__(self, stamps: int = 1) -> None:
        """Render inside the present gradio context, out of sight."""
        self.stamps = [gr.Textbox(label="stamp", visible="hidden") for _ in range(stamps)]
        self.timer = gr.Timer(EVERY)

    def wire(
        self, glance: Callable[..., tuple[Any, ...]], looked_at: Sequence[Any], card: Any, *updates: Update
    ) -> None:
        """Look every two seconds.

        Args:
            glance: Returns what `card` shows, which may change at every look, and the stamps of everything else.
            looked_at: What `glance` takes.
            card: The component that is brought up to date at every look.
            updates: What each stamp stands for, in the order of the stamps.
        """
        self.timer.tick(glance, [*looked_at], [card, *self.stamps], **QUIET)
        for mark, update in zip(self.stamps, updates, strict=True):
            mark.change(update.act, [*update.inputs], [*update.outputs], **QUIET)


def stamp(seen: dict[str, Any]) -> str:
    """Return a word that is another one when something of what was seen is different."""
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]
