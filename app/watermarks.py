"""The watermark as a switch of a generation: decoders with a key in them, by the key."""

from __future__ import annotations

from app import library, text
from app.site import Site


def choices(site: Site) -> list[tuple[str, str]]:
    """Return (label, folder) for every installed marked decoder, and ("off", "") first."""
    found = library.decoders([site.decoders])
    return [
        (text.MARK_OFF, ""),
        *((text.MARK_ON.format(key=item.key, model=item.base_model), str(item.path)) for item in found),
    ]
