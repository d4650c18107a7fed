"""The mixture: each head takes a part of what softmax left out from the linear branch instead.

    O_i = Os_i + s_h w_i (Ol_i - Os_i),   w_i = sum of P_ij over the scope's blocks that are not critical
    P_i = softmax over j of (mean(Q_i) mean(K_j)^T / sqrt(d) + log n_j),   n_j tokens in block j

Os is renormalised over the critical blocks, so it stands for the others too, and adding a map of Ol to it cannot take
that back. w_i is the router's own estimate of what they would have weighed; s_h, one number per head, is learned.
Combining both branches convexly is what SLA2 does (arXiv 2602.12675) where SLA adds; the estimate from block means, and
the learned share of it, are ours. Where every block is critical w is 0 and O is dense attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrdiff.errors import BackendError, ShapeError
from lrdiff.sla.blocks import CRITICAL, BlockMap
from lrdiff.sla.router import block_means

START = 0.5
"""Share that a head starts with. On `toys-dit` least squares gives 0.3 to 0.7 for most heads, more at low sparsity."""


def left_out(q: Tensor, k: Tensor, block_map: BlockMap, scope: str) -> Tensor:
    """Estimate which part of a query block's attention falls on blocks that only the linear branch sees.

    Args:
        q: Queries, [B, H, L, D].
        k: Keys, likewise.
        block_map: The map.
        scope: Of the linear branch.

    Returns:
        w of every query, [B, H, L, 1] in [0, 1], float32 (float64 for float64 inputs), with gradients for q and k.
    """
    length, columns = q.shape[-2], block_map.classes.shape[-1]
    sizes = torch.full((columns,), block_map.block_k, device=q.device)
    sizes[-1] = length - (columns - 1) * block_map.block_k
    with torch.autocast(q.device.type, enabled=False):
        scores = block_means(q, block_map.block_q) @ block_means(k, block_map.block_k).transpose(-1, -2)
        chances = (scores / math.sqrt(q.shape[-1]) + sizes.to(scores.dtype).log()).softmax(-1)
    seen = block_map.linear(scope) & (block_map.classes != CRITICAL)
    rows = chances.masked_fill(~seen, 0).sum(-1)
    return rows.repeat_interleave(block_map.block_q, -1)[..., :length].unsqueeze(-1)


def mix_in(sparse: Tensor, linear: Tensor, share: Tensor, left: Tensor) -> Tensor:
    """Return Os + s_h w_i (Ol - Os), [B, H, L, D].

    Args:
        sparse: Os, [B, H, L, D].
        linear: Ol, likewise.
        share: s, [H].
        left: w, [B, H, L, 1].

    Raises:
        ShapeError: There is not one share for each head.
        BackendError: The shares are on another device.
    """
    if tuple(share.shape) != (sparse.shape[1],):
        raise ShapeError(f"mix is {list(share.shape)}; {sparse.shape[1]} heads need [{sparse.shape[1]}], a share each")
    if share.device != sparse.device:
        raise BackendError(f"mix is on {share.device}, the queries on {sparse.device}: move it there")
    weight = (share.to(left.dtype)[:, None, None] * left).to(sparse.dtype)
    return sparse + weight * (linear - sparse)


def shares(heads: int, start: float = START) -> nn.Parameter:
    """Return the shares a layer starts with: `start` for every head, float32."""
    return nn.Parameter(torch.full((heads,), start, dtype=torch.float32))
