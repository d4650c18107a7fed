"""Tri-plane generators of 3D heads and their personal low-rank adapters.

    from lrdiff.triplane import TriplaneGenerator, eg3d_config

Names are imported on first use, so that importing this package stays free of torch. README.md beside this file holds
the equations and what differs from the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrdiff.lazy import lazy

if TYPE_CHECKING:
    from lrdiff.triplane.config import TriplaneConfig, eg3d_config
    from lrdiff.triplane.generator import TriplaneGenerator, View

_HOMES = {"TriplaneConfig": "config", "TriplaneGenerator": "generator", "View": "generator", "eg3d_config": "config"}

__all__ = ["TriplaneConfig", "TriplaneGenerator", "View", "eg3d_config"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
