"""The softmax branch through PyTorch's FlexAttention, with the same block map."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from lrdiff.errors import BackendError
from lrdiff.sla.blocks import CRITICAL, BlockMap


def flex_sparse(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> tuple[Tensor, Tensor]:
    """Attend over the critical blocks.

    On CUDA the compiled kernel visits listed blocks only. On a CPU, FlexAttention has no backward pass, and without a
    compiler it fills the whole L x L matrix: there this backend is a check of the map, not a fast path.

    Args:
        q: Queries, [B, H, L, D]; k and v alike.
        k: Keys.
        v: Values.
        block_map: The map.

    Returns:
        Os, [B, H, L, D], and the natural log-sum-exp, [B, H, L].

    Raises:
        BackendError: Gradients are wanted on a CPU.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if wanted and q.device.type == "cpu":
        raise BackendError("FlexAttention has no backward pass on a CPU: use backend='reference', or torch.no_grad()")
    attend: Callable[..., Any] = _compiled() if q.device.type == "cuda" else flex_attention
    out, extra = attend(q, k, v, block_mask=block_mask(block_map, q.shape[-2], wanted), return_aux=AuxRequest(lse=True))
    return out, extra.lse


def block_mask(block_map: BlockMap, length: int, training: bool) -> BlockMask:
    """Return the map in FlexAttention's form: every critical block is a full one, none is partial."""
    lists, counts = block_map.lists, block_map.counts
    blocks = block_map.classes.shape[-1]
    classes, block_q, block_k = block_map.classes, block_map.block_q, block_map.block_k

    def critical(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return classes[batch, head, query // block_q, key // block_k] == CRITICAL

    padded = pad(lists, (0, blocks - lists.shape[-1]))
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(padded),
        counts,
        padded,
        BLOCK_SIZE=(block_q, block_k),
        mask_mod=critical,
        seq_lengths=(length, length),
        compute_q_blocks=training,
    )


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)
