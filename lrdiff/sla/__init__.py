"""Sparse-linear attention: softmax over the blocks that matter, linear attention over blocks that matter less.

    from lrdiff.sla import sla_attention

Names are imported on first use, so that importing this package stays free of torch. README.md beside this file holds
the equations, the scopes, what limits the kernels and what differs from the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrdiff.lazy import lazy

if TYPE_CHECKING:
    from lrdiff.sla.blocks import BlockMap
    from lrdiff.sla.operator import Stats, sla_attention, sla_with_map
    from lrdiff.sla.router import route

_HOMES = {
    "BlockMap": "blocks",
    "Stats": "operator",
    "route": "router",
    "sla_attention": "operator",
    "sla_with_map": "operator",
}

__all__ = ["BlockMap", "Stats", "route", "sla_attention", "sla_with_map"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
