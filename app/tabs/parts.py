"""Pieces of HTML and of wiring that several tabs share."""

from __future__ import annotations

import html
from collections.abc import Mapping

from app import text


def section(title: str, about: str = "") -> str:
    """Return a heading of a part of a page, with a line below it."""
    return f"<h2>{title}</h2>" + (f"<p>{about}</p>" if about else "")


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
