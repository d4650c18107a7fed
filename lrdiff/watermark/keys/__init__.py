"""The registry of watermark keys: who owns which bits, encrypted at rest, with a signed history.

    from lrdiff.watermark.keys import open_registry

    registry = open_registry()
    key = registry.create(owner="studio", extractor_sha256=extractor.sha256())

Names are imported on first use, so that importing this package stays free of SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrdiff.lazy import lazy

if TYPE_CHECKING:
    from lrdiff.watermark.keys.backups import backup, restore
    from lrdiff.watermark.keys.candidates import Candidates, Match
    from lrdiff.watermark.keys.key import Key, RegistryError
    from lrdiff.watermark.keys.registry import Registry, open_registry

_HOMES = {
    "Candidates": "candidates",
    "Key": "key",
    "Match": "candidates",
    "Registry": "registry",
    "RegistryError": "key",
    "backup": "backups",
    "open_registry": "registry",
    "restore": "backups",
}

__all__ = ["Candidates", "Key", "Match", "Registry", "RegistryError", "backup", "open_registry", "restore"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
