"""What is installed besides the runs: shipped models and marked decoders, with what they fit and how large they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lrdiff import backbones
from lrdiff.assets import MODELS
from lrdiff.backbones import embedded
from lrdiff.errors import LrdiffError

DENOISERS = ("unet", "transformer")
"""Folders of a model that hold what adapters go into."""


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A model that comes with lrdiff.

    Attributes:
        name: What settings call it.
        path: Its folder.
    """

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class MarkedDecoder:
    """A decoder that puts a watermark into its pictures.

    Attributes:
        path: Its folder.
        key: Id of the key in it.
        base_model: Name of the model it belongs to.
    """

    path: Path
    key: str
    base_model: str


def shipped() -> list[ShippedModel]:
    """Return the models that come with lrdiff: base models first, then what reads marks and judges pictures."""
    bases = embedded.names()
    names = sorted(path.name for path in MODELS.glob("[!.]*") if path.is_dir())
    ordered = sorted(names, key=lambda name: (name not in bases, name))
    return [ShippedModel(name, MODELS / name) for name in ordered]


def decoders(folders: Sequence[Path]) -> list[MarkedDecoder]:
    """Return the marked decoders that lie directly in some folders; anything else there is passed over."""
    found = [_decoder(path.parent) for folder in folders for path in sorted(folder.glob("[!.]*/lrdiff.json"))]
    return [decoder for decoder in found if decoder is not None]


def _decoder(folder: Path) -> MarkedDecoder | None:
    try:
        record = json.loads((folder / "lrdiff.json").read_text(encoding="utf-8"))
        return MarkedDecoder(folder, str(record["key"]), str(record["base_model"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_fingerprint(model: str) -> str:
    """Return the fingerprint that adapters of a base model carry; "" where there is no such model."""
    try:
        root = backbones.find(model)
        folder = next((root / part for part in DENOISERS if (root / part).is_dir()), root / DENOISERS[0])
        newest = max((path.stat().st_mtime_ns for path in folder.iterdir()), default=0)
    except (LrdiffError, OSError):
        return ""
    return _fingerprint(folder, newest)


@lru_cache(maxsize=32)
def _fingerprint(folder: Path, newest: int) -> str:
    """Read the weights once for every change of them: they are hashed."""
    from lrdiff.backbones.base import fingerprint, read_json, weight_files

    try:
        return fingerprint(read_json(folder / "config.json"), weight_files(folder)[0])
    except LrdiffError:
        return ""
