"""Pieces of HTML and of wiring that several tabs share."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from app import text
from app.form import Form

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How the page calls its own functions: none of them is for programs."""
QUIET: dict[str, Any] = PRIVATE | {"queue": False}
"""The same for what answers at once and need not wait in line."""


def section(title: str, about: str = "") -> str:
    """Return a heading of a part of a page, with a line below it."""
    return f"<h2>{title}</h2>" + (f"<p>{about}</p>" if about else "")


def settings_group(
    title: str,
    form: Form,
    paths: Sequence[str],
    add: Callable[..., Component] | None = None,
    given: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Render settings below a heading, each with the name that it has on the command line.

    Args:
        title: The heading.
        form: Whose fields they are.
        paths: The settings.
        add: Renders one of them; `form.add` when left out.
        given: Arguments of the gradio component that stand in for the generated ones, by path.
    """
    gr.HTML(section(title), elem_classes="section", padding=False)
    with gr.Row(elem_classes="settings"):
        for path in paths:
            flagged = text.help_with_flag(form.field(path))
            (add or form.add)(path, info=flagged, min_width=220, **(given or {}).get(path, {}))


def problem_box(problems: Mapping[str, str], title: str) -> str:
    """Return problems as HTML: what did not happen, then a line for each, beginning with the setting's label.

    Args:
        problems: Message by path of the setting; the empty path is for problems of several together.
        title: What did not happen.
    """
    lines = "".join(f"<li>{_named(path)}{html.escape(message)}</li>" for path, message in problems.items())
    return f"<div class='problems' role='alert'><p>{title}</p><ul>{lines}</ul></div>"


def _named(path: str) -> str:
    label = text.IMAGES_TITLE if path == "data.images" else text.label(path)
    return f"<b>{html.escape(label)}:</b> " if path else ""
