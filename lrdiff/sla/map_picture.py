"""Block maps as pictures: a square for every head, rows are blocks of queries, columns blocks of keys."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from lrdiff.sheet import INK, PAPER, sheet
from lrdiff.sla.blocks import CRITICAL, MARGINAL, NEGLIGIBLE
from lrdiff.sla.maps import LayerMap

COLORS = {"critical": "#0a3f3a", "marginal": "#cb7c22", "negligible": "#ffffff"}
"""Each more than 3 : 1 lighter than the one before, so that they differ without colour too."""
SIDE = 192
ACROSS = 4
FONT, SWATCH, PAD = 14, 16, 8


def head_pictures(found: LayerMap, side: int = SIDE) -> list[Image.Image]:
    """Draw the map of every head.

    Args:
        found: From `lrdiff.sla.maps.block_maps`.
        side: Pixels on the longer side at the least. Blocks are whole squares, at least one pixel each.

    Returns:
        One RGB picture per head, all of one size.
    """
    kinds = {CRITICAL: "critical", MARGINAL: "marginal", NEGLIGIBLE: "negligible"}
    colors = {kind: tuple(bytes.fromhex(COLORS[name][1:])) for kind, name in kinds.items()}
    heads, rows, columns = found.classes.shape
    cell = -(-side // max(rows, columns))
    pictures = []
    for head in range(heads):
        small = Image.new("RGB", (columns, rows))
        small.putdata([colors[kind] for kind in found.classes[head].flatten().tolist()])
        pictures.append(small.resize((columns * cell, rows * cell), Image.Resampling.NEAREST))
    return pictures


def map_picture(found: LayerMap) -> Image.Image:
    """Draw all heads on one sheet, with a legend that says the shares.

    Args:
        found: From `lrdiff.sla.maps.block_maps`.

    Returns:
        An RGB picture.
    """
    pictures = [_framed(picture) for picture in head_pictures(found)]
    blank = Image.new("RGB", pictures[0].size, PAPER)
    across = min(ACROSS, len(pictures))
    lines = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    rows = [f"heads {n * across + 1} to {n * across + len(line)}" for n, line in enumerate(lines)]
    columns = [""] * across
    if len(lines) == 1:
        rows, columns = [""], [f"head {n + 1}" for n in range(across)]
    cells = [[*line, *[blank] * (across - len(line))] for line in lines]
    page = sheet(cells, rows, columns)
    legend = _legend(found)
    whole = Image.new("RGB", (max(page.width, legend.width), page.height + legend.height), PAPER)
    whole.paste(page, (0, 0))
    whole.paste(legend, (0, page.height))
    return whole


def _framed(picture: Image.Image) -> Image.Image:
    """Put a line around a map, whose negligible blocks are as white as the paper."""
    framed = Image.new("RGB", (picture.width + 2, picture.height + 2), INK)
    framed.paste(picture, (1, 1))
    return framed


def _legend(found: LayerMap) -> Image.Image:
    font = ImageFont.load_default(FONT)
    words = {name: f"{name} {share:.1%}" for name, share in found.shares.items()}
    width = max(int(font.getlength(text)) for text in words.values()) + SWATCH + 3 * PAD
    legend = Image.new("RGB", (width, len(words) * (SWATCH + PAD) + PAD), PAPER)
    pen = ImageDraw.Draw(legend)
    for number, (name, text) in enumerate(words.items()):
        top = number * (SWATCH + PAD)
        pen.rectangle((PAD, top, PAD + SWATCH, top + SWATCH), fill=COLORS[name], outline=INK)
        pen.text((SWATCH + 2 * PAD, top), text, fill=INK, font=font)
    return legend
