"""A block map in words and as HTML: the shares, what they mean, and a square for every head."""

from __future__ import annotations

import base64
import html
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from app import text, text_attention

if TYPE_CHECKING:
    from app.block_maps import Look


def sentences(seen: Look) -> list[str]:
    """Return what was found in plain words, the layer first."""
    return [about_layer(seen), text_attention.SHARES.format(**seen.found.shares), *about_rest(seen)]


def about_layer(seen: Look) -> str:
    """Return which layer was looked at, and how large it is."""
    heads, rows, columns = seen.found.classes.shape
    return text_attention.LAYER.format(
        layer=seen.layer,
        tokens=text.plural(text_attention.TOKENS, seen.found.tokens),
        rows=rows,
        columns=columns,
        heads=text.plural(text_attention.HEADS, heads),
    )


def about_rest(seen: Look) -> list[str]:
    """Return what becomes of the blocks that are not critical, and what the map says of the whole model."""
    found, settings = seen.found, seen.found.settings
    words = text.plural(text_attention.TOKENS, found.text)
    lines = [text_attention.TEXT.format(tokens=words)] if found.text else []
    if found.shares["critical"] < 1:
        lines.append(text_attention.SCOPES[settings.scope])
    else:
        lines.append(text_attention.NOTHING_SPARSE.format(**asdict(settings)))
    return [*lines, *about_model(seen)]


def about_model(seen: Look) -> list[str]:
    """Return how long the layers of a model are, and how many are too short for the settings."""
    counts = sorted(Counter(seen.tokens.values()).items(), reverse=True)
    listed = ", ".join(
        text_attention.LAYERS_OF.format(layers=number, tokens=text.plural(text_attention.TOKENS, tokens))
        for tokens, number in counts
    )
    layers = text.plural(text_attention.LAYERS, len(seen.tokens))
    lines = [text_attention.MODEL.format(model=seen.model, layers=layers, side=seen.side, tokens=listed)]
    short = sum(number for tokens, number in counts if not seen.found.settings.sparsity(tokens))
    return [*lines, text.plural(text_attention.TOO_SHORT, short)] if short else lines


def view(seen: Look) -> str:
    """Return a map as HTML: shares, legend, a picture for every head, and what it says of the model."""
    from lrdiff.png import encode
    from lrdiff.sla.map_picture import COLORS, head_pictures

    _, rows, columns = seen.found.classes.shape
    legend = "".join(
        f"<li><i style='background: {COLORS[name]}'></i><span><b>{name} {share:.1%}</b> "
        f"{text_attention.KINDS[name]}</span></li>"
        for name, share in seen.found.shares.items()
    )
    figures = ""
    for number, picture in enumerate(head_pictures(seen.found), 1):
        data = base64.b64encode(encode(picture, {})).decode()
        alt = text_attention.HEAD_ALT.format(number=number, rows=rows, columns=columns)
        figures += (
            f"<figure><img src='data:image/png;base64,{data}' alt='{alt}'>"
            f"<figcaption>{text_attention.HEAD.format(number=number)}</figcaption></figure>"
        )
    facts = "".join(f"<li>{html.escape(line)}</li>" for line in about_rest(seen))
    return (
        f"<p class='count' role='status'>{html.escape(about_layer(seen))}</p><ul class='legend'>{legend}</ul>"
        f"<div class='heads'>{figures}</div><p class='note'>{text_attention.AXES}</p><ul class='facts'>{facts}</ul>"
    )
