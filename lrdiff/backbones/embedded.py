"""The small models that come with the project, by name."""

from __future__ import annotations

from pathlib import Path

from lrdiff.assets import MODELS as ROOT


def names() -> list[str]:
    """Return the names of the shipped models that are present."""
    return sorted(path.parent.name for path in ROOT.glob("*/model_index.json"))


def find(name: str) -> Path | None:
    """Return the folder of a shipped model, or None when no such model is present."""
    return ROOT / name if name in names() else None
