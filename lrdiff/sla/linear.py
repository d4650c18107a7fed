"""The linear branch in plain torch: sums of phi(K)^T V per key block, added up per query block by one product.

Which blocks a query block adds up is a 0/1 matrix, so H = R h is a matrix product, and so is its gradient. No
subtraction is involved: an empty set gives exactly 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lrdiff.sla.blocks import BlockMap
from lrdiff.sla.features import phi


def linear_branch(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, scope: str, feature_map: str) -> Tensor:
    """Return Ol = phi(Q_i) H_i / (phi(Q_i) Z_i), [B, H, L, D], differentiably; 0 where the denominator is 0.

    Args:
        q: Queries, [B, H, L, D]; k and v alike.
        k: Keys.
        v: Values.
        block_map: The map.
        scope: Which blocks of it are added up: "marginal", "noncritical" or "all".
        feature_map: phi.
    """
    with torch.autocast(q.device.type, enabled=False):
        fq, fk = phi(q, feature_map), phi(k, feature_map)
        wide = v.to(fk.dtype)
        if scope == "all":
            weight = 2.0 ** -math.ceil(math.log2(q.shape[-2]))
            h, z = (fk * weight).transpose(-1, -2) @ wide, (fk * weight).sum(-2)
            return ratio(fq @ h, fq @ z.unsqueeze(-1)).to(q.dtype)
        keys, values = blocked(fk, block_map.block_k), blocked(wide, block_map.block_k)
        h, z = gather_sums(keys.transpose(-1, -2) @ values, keys.sum(-2), block_map.linear(scope))
        queries = blocked(fq, block_map.block_q)
        out = ratio(queries @ h, queries @ z.unsqueeze(-1)).flatten(-3, -2)
        return out[..., : q.shape[-2], :].to(q.dtype)


def gather_sums(h: Tensor, z: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the sums of the blocks in `inside`: H = R h, Z = R z, times a power of two that cancels in H / Z.

    The power of two keeps float16 sums in range at any length.

    Args:
        h: [B, H, N, D, D].
        z: [B, H, N, D].
        inside: Booleans, [B, H, M, N].
    """
    weight = 2.0 ** -math.ceil(math.log2(inside.shape[-1]))
    rows = inside.to(h.dtype) * weight
    return (rows @ h.flatten(-2)).unflatten(-1, h.shape[-2:]), (inside.to(z.dtype) * weight) @ z


def ratio(num: Tensor, den: Tensor) -> Tensor:
    """Return num / den, and 0 (with gradient 0) where den is 0."""
    return torch.where(den > 0, num / torch.where(den > 0, den, 1), 0)


def blocked(x: Tensor, block: int) -> Tensor:
    """Cut [B, H, L, D] into [B, H, ceil(L / block), block, D], filling the last block with zeros."""
    blocks = (x.shape[-2] + block - 1) // block
    return pad(x, (0, 0, 0, blocks * block - x.shape[-2])).unflatten(-2, (blocks, block))
