"""Sparse-linear attention over an image and its text in one sequence: text is never sparse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lrdiff.sla.blocks import CRITICAL, BlockMap
from lrdiff.sla.operator import project, sla_attention, sla_with_map
from lrdiff.sla.router import route
from lrdiff.sla.settings import SlaSettings


def joint_attention(
    q: Tensor, k: Tensor, v: Tensor, text: int, proj: nn.Linear, mix: Tensor | None, settings: SlaSettings
) -> Tensor:
    """Attend within [image, text]: image queries to critical blocks and to all text, text queries to everything.

    Both branches for image tokens, O = softmax(Q K^T / sqrt(d)) V for text tokens.

    Args:
        q: Queries, [B, L, H, D], the text last.
        k: Keys, likewise.
        v: Values, likewise.
        text: Number of text tokens at the end, 0 to L - 1.
        proj: The layer's projection.
        mix: Its heads' shares, [H], or None.
        settings: The layer's settings.

    Returns:
        O, [B, L, H, D].

    Raises:
        As `sla_attention`.

    Differs from the paper:
        It has no text. A block in which image and text meet counts as text: its keys are critical for everybody and its
        queries dense, so nothing is padded and no length is refused.
    """
    if text == 0:
        return sla_attention(q, k, v, proj=proj, mix=mix, layout="blhd", **settings.router(), **settings.branch())
    image = q.shape[1] - text

    def on_image(linear: Tensor) -> Tensor:
        return pad(project(proj, linear[:, :image]), (0, 0, 0, 0, 0, text))

    block_map = joint_map(q, k, text, settings)
    return sla_with_map(q, k, v, block_map, proj=on_image, mix=mix, layout="blhd", **settings.branch())[0]


def joint_map(q: Tensor, k: Tensor, text: int, settings: SlaSettings) -> BlockMap:
    """Route the image among itself and add the text, see `joint_attention`. Nothing here waits for the device."""
    batch, length, heads, _ = q.shape
    image = length - text
    rows, cols = image // settings.block_q, image // settings.block_k
    shape = (batch, heads, -(-length // settings.block_q), -(-length // settings.block_k))
    classes = torch.full(shape, CRITICAL, dtype=torch.int8, device=q.device)
    if rows and cols:
        routed = route(q[:, :image], k[:, :image], layout="blhd", **settings.router())
        classes[..., :rows, :cols] = routed.classes[..., :rows, :cols]
    critical = classes == CRITICAL
    counts = critical.sum(-1, dtype=torch.int32)
    order = torch.sort(critical.to(torch.int8), dim=-1, descending=True, stable=True).indices
    used = torch.arange(shape[-1], device=q.device) < counts.unsqueeze(-1)
    lists = torch.where(used, order, 0).to(torch.int32)
    return BlockMap(classes, lists, counts, settings.block_q, settings.block_k)
