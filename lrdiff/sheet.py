"""Labelled sheets of pictures: rows and columns with their captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAD = 8
FONT = 14
INK = (40, 40, 40)
PAPER = (255, 255, 255)


def sheet(pictures: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Lay out pictures with a caption above each column and to the left of each row.

    Args:
        pictures: One sequence per row, all pictures of the same size.
        rows: Row captions, wrapped; if all are empty the row captions take no space.
        columns: Column captions; likewise.

    Returns:
        An RGB picture.
    """
    width, height = pictures[0][0].size
    font = ImageFont.load_default(FONT)
    line = FONT + 4
    side = max(width, 120) if any(rows) else 0
    top_text = [_wrap(text, font, width) for text in columns]
    left_text = [_wrap(text, font, side) for text in rows]
    top = max((len(text) for text in top_text), default=0) * line + PAD if any(columns) else 0
    pitch = [max(height, len(text) * line) + PAD for text in left_text]
    size = (side + PAD * bool(side) + (width + PAD) * len(columns) + PAD, top + sum(pitch) + PAD)
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    left = side + PAD * (2 if side else 1)
    for j, text in enumerate(top_text):
        _write(pen, (left + j * (width + PAD), PAD), text, font, line)
    y = top + PAD
    for i, text in enumerate(left_text):
        _write(pen, (PAD, y), text, font, line)
        for j, picture in enumerate(pictures[i]):
            page.paste(picture, (left + j * (width + PAD), y))
        y += pitch[i]
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a caption into lines no wider than `width` pixels, and words that are wider still."""
    lines: list[str] = []
    words = text.split()
    while words:
        word = words.pop(0)
        fits = max((n for n in range(1, len(word) + 1) if font.getlength(word[:n]) <= width), default=1)
        if fits < len(word):
            words.insert(0, word[fits:])
            word = word[:fits]
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    pitch: int,
) -> None:
    for number, text in enumerate(lines):
        pen.text((at[0], at[1] + number * pitch), text, fill=INK, font=font)
