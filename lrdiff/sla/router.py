"""The router: which key blocks are critical, marginal or negligible for a query block."""

from __future__ import annotations

import torch
from torch import Tensor

from lrdiff.sla import inputs
from lrdiff.sla.blocks import CRITICAL, NEGLIGIBLE, BlockMap, amounts, check_blocks


def route(
    q: Tensor,
    k: Tensor,
    *,
    topk: float = 0.05,
    skip: float = 0.10,
    block_q: int = 128,
    block_k: int = 64,
    layout: str = "bhld",
    backend: str = "auto",
) -> BlockMap:
    """Classify key blocks by the products of block means (equations 2 and 3 of the SLA paper).

    Of n key blocks the max(1, floor(topk n)) largest of a row are critical and the floor(skip n) smallest negligible.
    The paper ranks softmax(mean(Q) mean(K)^T / sqrt(d)); the softmax and the scale keep the order of a row and are
    left out. Means are float32 and divide by the true number of tokens in a block. Equal scores: the lower index is
    the larger. No gradient flows through the map.

    Args:
        q: Queries, [B, H, L, D], or [B, L, H, D] for `layout="blhd"`.
        k: Keys, of the same shape.
        topk: Share of critical blocks, in (0, 1].
        skip: Share of negligible blocks, in [0, 1).
        block_q: Tokens in a query block: 16, 32, 64 or 128.
        block_k: Tokens in a key block, likewise.
        layout: Order of the dimensions.
        backend: As in `sla_attention`; "flex" routes like "reference".

    Raises:
        ConfigError: A setting is out of range.
        ShapeError: Shapes disagree.
        BackendError: The backend cannot work on these tensors.
    """
    check_blocks(block_q, block_k)
    q, k = inputs.heads_first(layout, q, k)
    inputs.check_tensors(q, k)
    critical, negligible = amounts(-(-q.shape[-2] // block_k), topk, skip)
    if inputs.choose(backend, q) == "triton":
        from lrdiff.sla import triton_ops

        classes, lists = triton_ops.route(q.detach(), k.detach(), critical, negligible, block_q, block_k)
    else:
        classes, lists = _route(q.detach(), k.detach(), critical, negligible, block_q, block_k)
    counts = torch.full(classes.shape[:-1], critical, dtype=torch.int32, device=q.device)
    return BlockMap(classes, lists, counts, block_q, block_k)


def block_means(x: Tensor, block: int) -> Tensor:
    """Average the tokens of each block, [B, H, L, D] to [B, H, ceil(L / block), D]; the last may be shorter."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    whole = x.shape[-2] // block * block
    parts = [x[..., :whole, :].unflatten(-2, (-1, block)).mean(-2, dtype=wide)] if whole else []
    if whole < x.shape[-2]:
        parts.append(x[..., whole:, :].mean(-2, keepdim=True, dtype=wide))
    return torch.cat(parts, -2)


def _route(q: Tensor, k: Tensor, critical: int, negligible: int, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        scores = block_means(q, block_q) @ block_means(k, block_k).transpose(-1, -2)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    classes = torch.zeros(scores.shape, dtype=torch.int8, device=q.device)
    classes = classes.scatter(-1, order[..., :critical], CRITICAL)
    classes = classes.scatter(-1, order[..., order.shape[-1] - negligible :], NEGLIGIBLE)
    return classes, torch.sort(order[..., :critical], dim=-1).values.to(torch.int32)
