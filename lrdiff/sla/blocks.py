"""Which key blocks a query block attends to, and how: the map, its row lists and its column lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lrdiff.errors import ConfigError, ShapeError

CRITICAL, MARGINAL, NEGLIGIBLE = 1, 0, -1
SCOPES = ("marginal", "noncritical", "all")
SIZES = (16, 32, 64, 128)
BILLION = 10**9


class Columns(NamedTuple):
    """Column lists: of each key block, the query blocks that attend to it, rows ascending."""

    rows: Tensor
    """int32 [B, H, M * width]: the lists of a head one after another."""
    starts: Tensor
    """int32 [B, H, N + 1]: where the list of each key block begins."""
    order: Tensor
    """int32 [B, H, N]: key blocks, longest list first."""


@dataclass(frozen=True)
class BlockMap:
    """A three-class map of M query blocks by N key blocks, for each sample and head.

    `classes` is int8 [B, H, M, N]: 1 critical (softmax), 0 marginal (linear), -1 negligible (skipped). `lists`, int32
    [B, H, M, width], holds the critical key blocks of each row, ascending; a row uses its first `counts` entries
    (int32 [B, H, M]), the rest are 0.
    """

    classes: Tensor
    lists: Tensor
    counts: Tensor
    block_q: int
    block_k: int

    @classmethod
    def from_classes(cls, classes: Tensor, *, block_q: int, block_k: int) -> BlockMap:
        """Build the row lists of any map; rows may have different numbers of critical blocks.

        Args:
            classes: Integers [B, H, M, N] of 1, 0 and -1.
            block_q: Tokens in a query block.
            block_k: Tokens in a key block.

        Raises:
            ShapeError: The map is not four-dimensional, holds other values, or has a row without a critical block.
            ConfigError: A block size is not 16, 32, 64 or 128.
        """
        check_blocks(block_q, block_k)
        if classes.dim() != 4 or classes.is_floating_point():
            raise ShapeError(
                f"a block map is an integer tensor [batch, heads, query blocks, key blocks]; this one is "
                f"{classes.dtype} {list(classes.shape)}"
            )
        if not bool(((classes >= NEGLIGIBLE) & (classes <= CRITICAL)).all()):
            raise ShapeError("a block map holds 1 (critical), 0 (marginal) and -1 (negligible) only")
        critical = classes == CRITICAL
        counts = critical.sum(-1, dtype=torch.int32)
        if int(counts.min()) < 1:
            raise ShapeError(
                "every query block needs at least one critical key block: a softmax over none is undefined"
            )
        width = int(counts.max())
        first = torch.sort(critical.to(torch.int8), dim=-1, descending=True, stable=True).indices[..., :width]
        used = torch.arange(width, device=classes.device) < counts.unsqueeze(-1)
        lists = torch.where(used, first, 0).to(torch.int32)
        return cls(classes.to(torch.int8).contiguous(), lists.contiguous(), counts.contiguous(), block_q, block_k)

    @property
    def sparsity(self) -> float:
        """Share of the map that softmax attention leaves out, 0 to 1. Waits for the device."""
        return 1 - float((self.classes == CRITICAL).double().mean())

    def linear(self, scope: str) -> Tensor:
        """Return the linear branch's blocks under `scope` as booleans [B, H, M, N]."""
        if scope == "marginal":
            return self.classes == MARGINAL
        if scope == "noncritical":
            return self.classes != CRITICAL
        return torch.ones_like(self.classes, dtype=torch.bool)


def columns(lists: Tensor, counts: Tensor, blocks: int) -> Columns:
    """Invert row lists into column lists, so that a key block finds its query blocks without a scan.

    Args:
        lists: int32 [B, H, M, width], see `BlockMap`.
        counts: int32 [B, H, M].
        blocks: N, the number of key blocks.
    """
    width = lists.shape[-1]
    used = torch.arange(width, device=lists.device) < counts.unsqueeze(-1)
    keys = torch.where(used, lists, blocks).flatten(-2).long()
    order = torch.sort(keys, dim=-1, stable=True).indices
    sizes = keys.new_zeros(*keys.shape[:-1], blocks + 1).scatter_add_(-1, keys, torch.ones_like(keys))[..., :blocks]
    starts = torch.nn.functional.pad(sizes.cumsum(-1), (1, 0))
    longest = torch.sort(sizes, dim=-1, descending=True, stable=True).indices
    return Columns((order // width).int(), starts.int().contiguous(), longest.int())


def amounts(blocks: int, topk: float, skip: float) -> tuple[int, int]:
    """Return how many of `blocks` key blocks are critical, max(1, floor(topk n)), and negligible, floor(skip n).

    Shares are rounded to 1e-9, so that 0.29 of 100 is 29. With topk = 1 every block is critical, whatever `skip` is.

    Raises:
        ConfigError: A share is out of range, or the two overlap.
    """
    if not 0 < topk <= 1:
        raise ConfigError(f"topk is the share of critical blocks and lies in (0, 1], not {topk}")
    if not 0 <= skip < 1:
        raise ConfigError(f"skip is the share of negligible blocks and lies in [0, 1), not {skip}")
    critical = max(1, round(topk * BILLION) * blocks // BILLION)
    negligible = round(skip * BILLION) * blocks // BILLION
    if topk < 1 and topk + skip > 1 + 1e-9:
        raise ConfigError(
            f"topk + skip = {topk + skip:g}: the critical and negligible shares overlap; lower one of them"
        )
    return critical, min(negligible, blocks - critical)


def check_blocks(block_q: int, block_k: int) -> None:
    """Raise `ConfigError` unless both block sizes are powers of two from 16 to 128."""
    for name, size in (("block_q", block_q), ("block_k", block_k)):
        if size not in SIZES:
            raise ConfigError(f"{name} is {size}; block sizes are {', '.join(map(str, SIZES))}")
