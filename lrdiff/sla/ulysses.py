"""Context parallelism as in DeepSpeed-Ulysses (arXiv 2309.14509).

Each process has a part of the tokens of all heads. An exchange makes that all tokens of a part of the heads, which is
exact for any attention that treats heads apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from diffusers.models.attention_dispatch import SeqAllToAllDim
from torch import Tensor

from lrdiff.errors import BackendError


def over_processes(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, of_heads: Tensor | None, parallel: Any
) -> Tensor:
    """Attend over the tokens of all processes.

    Args:
        attend: Takes q, k and v, [B, L, H / P, D], and what is of these heads, [H / P]; returns the shape of q.
        q: Queries of this process' tokens, [B, L / P, H, D].
        k: Keys, likewise.
        v: Values, likewise.
        of_heads: A number for each head, [H], or None.
        parallel: diffusers' `ParallelConfig`, set up for P processes.

    Returns:
        The outputs of this process' tokens, [B, L / P, H, D].

    Raises:
        BackendError: Another form of context parallelism is asked for, or P does not divide the heads.
    """
    wanted = parallel.context_parallel_config
    degree = wanted.ulysses_degree
    if wanted.ring_degree > 1 or wanted.ulysses_anything:
        raise BackendError(
            "sparse-linear attention supports context parallelism by ulysses_degree alone: ring_degree and "
            "ulysses_anything would split the tokens that the router has to see together"
        )
    if q.shape[2] % degree:
        raise BackendError(f"{q.shape[2]} heads cannot be split among ulysses_degree={degree} processes")
    group = wanted._ulysses_mesh.get_group()
    own = None if of_heads is None else of_heads.chunk(degree)[torch.distributed.get_rank(group)]
    out = attend(*(_exchange(x, group, 2, 1) for x in (q, k, v)), own)
    return _exchange(out, group, 1, 2)


def _exchange(x: Tensor, group: Any, scatter: int, gather: int) -> Tensor:
    """Split one dimension among processes and put another one together, differentiably."""
    exchanged: Any = SeqAllToAllDim.apply(group, x, scatter, gather)
    return exchanged
