"""Previews over time as one strip that scrolls sideways: a column per step, a row per prompt."""

from __future__ import annotations

import html
from pathlib import Path
from urllib.parse import quote

from app import text, text_rewards
from trainers.rundir import RunDir

SHOWN = 60
"""Columns of the strip; of longer runs the first and the newest are shown."""


def file_url(path: Path) -> str:
    """Return where the page serves a file of the runs or outputs, below its own address. The bytes are the file's."""
    return f"gradio_api/file={quote(str(path))}"


def strip(run: RunDir) -> str:
    """Return the previews of a run as HTML; a line of text where there are none."""
    folders = sorted(folder for folder in run.previews.glob("*") if folder.name.isdigit())
    if len(folders) > SHOWN:
        folders = [folders[0], *folders[1 - SHOWN :]]
    columns = [_column(folder) for folder in folders]
    if not any(columns):
        return f"<p class='note'>{text.NO_PREVIEWS}</p>"
    return f"<div class='strip' tabindex='0' role='group' aria-label='{text.PREVIEWS}'>{''.join(columns)}</div>"


def before_and_after(run: RunDir) -> str:
    """Return the first and the newest previews of a run side by side as HTML; a line of text where there are none."""
    folders = sorted(folder for folder in run.previews.glob("*") if folder.name.isdigit())
    ends = dict(zip((text_rewards.BEFORE, text_rewards.AFTER), dict.fromkeys(folders[:1] + folders[-1:]), strict=False))
    columns = [_column(folder, caption.format(step=int(folder.name))) for caption, folder in ends.items()]
    if not any(columns):
        return f"<p class='note'>{text.NO_PREVIEWS}</p>"
    return f"<div class='ends'>{''.join(columns)}</div>"


def _column(folder: Path, caption: str = "") -> str:
    caption = caption or text.PREVIEW_CAPTION.format(step=int(folder.name))
    images = "".join(
        f"<a href='{html.escape(file_url(file))}' target='_blank' rel='noopener'>"
        f"<img src='{html.escape(file_url(file))}' alt='{caption}, {html.escape(file.stem)}' loading='lazy'></a>"
        for file in sorted(folder.glob("[!.]*.png"))
    )
    return f"<figure><figcaption>{caption}</figcaption>{images}</figure>" if images else ""
