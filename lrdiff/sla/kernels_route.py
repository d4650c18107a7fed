# The checker takes Triton's language for Python: its constants and tiles have other types when compiled.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
"""Kernels of the router: block means, and the classes of a row by rank."""

from __future__ import annotations

import triton
import triton.language as tl

from lrdiff.sla.kernels_shared import head_of, load_tile


@triton.jit(do_not_specialize=["length"])
def block_means(x, out, heads, length, sb, sh, sl, BLOCK: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Average one block of tokens, dividing by the true count. Grid: blocks, samples x heads."""
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile = load_tile(head_of(x, bh, heads, sb, sh), block * BLOCK, sl, length, BLOCK, HEAD, WIDTH, True)
    count = tl.minimum(length - block * BLOCK, BLOCK)
    mean = tl.sum(tile.to(tl.float32), 0) / count.to(tl.float32)
    c = tl.arange(0, WIDTH)
    tl.store(out + (bh * tl.num_programs(0) + block) * HEAD + c, mean, mask=c < HEAD)


@triton.jit(do_not_specialize=["blocks", "critical", "negligible"])
def classify(scores, classes, lists, blocks, critical, negligible, TILE: tl.constexpr):
    """Class the key blocks of one row by rank and list its critical ones in ascending order. Grid: all rows.

    The rank of j is the number of blocks that score higher, or equal with a lower index. Counting compares every pair,
    which for rows of a few thousand blocks costs less than sorting, and needs no shape known in advance.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * blocks
    classes += row * blocks
    lists += row * critical
    listed = 0
    for first in range(0, blocks, TILE):
        j = first + tl.arange(0, TILE)
        mine = tl.load(scores + j, mask=j < blocks, other=-float("inf"))
        rank = tl.zeros((TILE,), tl.int32)
        for other in range(0, blocks, TILE):
            i = other + tl.arange(0, TILE)
            theirs = tl.load(scores + i, mask=i < blocks, other=-float("inf"))
            tie = (theirs[:, None] == mine[None, :]) & (i[:, None] < j[None, :])
            above = (theirs[:, None] > mine[None, :]) | tie
            rank += tl.sum((above & (i < blocks)[:, None]).to(tl.int32), 0)
        chosen = (rank < critical) & (j < blocks)
        kind = tl.where(chosen, 1, tl.where(rank >= blocks - negligible, -1, 0))
        tl.store(classes + j, kind.to(tl.int8), mask=j < blocks)
        place = listed + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(lists + place, j, mask=chosen & (place < critical))
        listed += tl.sum(chosen.to(tl.int32), 0)
