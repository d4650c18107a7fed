"""Sparse-linear attention in Wan's transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrdiff.errors import ConfigError
from lrdiff.sla.processor import SlaProcessor, heads_of, no_mask


class WanProcessor(SlaProcessor):
    """Self-attention of Wan's transformers, rotary embedding included; norms are over all heads together."""

    ROTARY = "rotary_emb"

    def forward(self, attn: Any, states: Tensor, text: Tensor | None, mask: Tensor | None, rotary: Any) -> Tensor:
        """Attend within `states`, [B, L, C]; returns the same shape."""
        no_mask(mask)
        if text is not None:
            raise ConfigError("sparse-linear attention in Wan is for self-attention, and this call brings text")
        q, k = attn.norm_q(attn.to_q(states)), attn.norm_k(attn.to_k(states))
        q, k, v = (heads_of(attn, x) for x in (q, k, attn.to_v(states)))
        if rotary is not None:
            q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        return attn.to_out[1](attn.to_out[0](self.attend(q, k, v)))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    return (x * cos + turned * sin).type_as(x)
