"""Keeps a part of the page up to date: a small answer every two seconds, the large one only when something changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app.tabs.parts import QUIET

EVERY = 2.0
"""Seconds between two looks."""


class Pulse:
    """A timer, and the stamp of what it saw last.

    gradio makes every component of an answer anew, also one that is left alone: an answer with 20 of them takes 14 ms
    of the processor, one with two takes 3. Every visitor looks all the time, and mostly nothing has happened.
    """

    def __init__(self) -> None:
        """Render inside the present gradio context, out of sight."""
        self.stamp = gr.Textbox(label="stamp", visible="hidden")
        self.timer = gr.Timer(EVERY)

    def wire(
        self,
        glance: Callable[..., tuple[Any, str]],
        looked_at: Sequence[Any],
        card: Any,
        refresh: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
    ) -> None:
        """Look every two seconds.

        Args:
            glance: Returns what `card` shows, which may change at every look, and the stamp of everything else.
            looked_at: What `glance` takes.
            card: The component that is brought up to date at every look.
            refresh: Brings everything up to date, when the stamp is another one.
            inputs: What `refresh` takes.
            outputs: What `refresh` brings up to date.
        """
        self.timer.tick(glance, [*looked_at], [card, self.stamp], **QUIET)
        self.stamp.change(refresh, [*inputs], [*outputs], **QUIET)


def stamp(seen: dict[str, Any]) -> str:
    """Return a word that is another one when something of what was seen is different."""
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]
