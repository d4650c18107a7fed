"""The slow truth: T and D materialised from the definition, in float64. For tests and benchmarks only.

Nothing here is shared with `functional.py`: cores come in the paper's layout and every index is summed as written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def transform(cores: Sequence[Tensor]) -> Tensor:
    """T[i1..iD, j1..jD] = trace(A^1[i1, j1] .. A^D[iD, jD]).

    Args:
        cores: A^d, [I_d, I_d, R, R].

    Returns:
        T, [in, in], float64.
    """
    result = cores[0].double()
    for core in cores[1:]:
        joined = torch.einsum("ijrs,klst->ikjlrt", result, core.double())
        rows, inner = joined.shape[0], joined.shape[1]
        result = joined.reshape(rows * inner, rows * inner, *joined.shape[4:])
    return torch.einsum("ijrr->ij", result)


def ring(out_cores: Sequence[Tensor], in_cores: Sequence[Tensor]) -> Tensor:
    """D[i, j] = trace(B^1[i1] .. B^D[iD] C^1[j1] .. C^D[jD]), through a transient of size out x in x R^2.

    Args:
        out_cores: B^d, [I_d, R, R].
        in_cores: C^d, [J_d, R, R].

    Returns:
        D, [out, in], float64.
    """
    open_ends = torch.einsum("irs,jst->ijrt", _chain(out_cores), _chain(in_cores))
    return torch.einsum("ijrr->ij", open_ends)


def kronecker(cores: Sequence[Tensor]) -> Tensor:
    """T of ring rank 1, as a chain of `torch.kron`: a second formula for the same matrix.

    Args:
        cores: A^d, [I_d, I_d, 1, 1].
    """
    result = torch.ones(1, 1, dtype=torch.float64)
    for core in cores:
        result = torch.kron(result, core.double()[:, :, 0, 0])
    return result


def weight(base: Tensor, matrix: Tensor, residual: Tensor, scale: float, strength: float = 1.0) -> Tensor:
    """W'(g) = W0 + g [W0 (T - I) + s D].

    Args:
        base: W0, [out, in], or [out, in, kh, kw] of a convolution, whose channels T mixes.
        matrix: T, [in, in].
        residual: D, as many entries as W0.
        scale: s.
        strength: g.

    Returns:
        W', the shape of W0, float64.
    """
    plain = base.double()
    turned = torch.einsum("oi...,ij->oj...", plain, matrix.double() - torch.eye(matrix.shape[0]))
    return plain + strength * (turned + scale * residual.double().reshape(base.shape))


def _chain(cores: Sequence[Tensor]) -> Tensor:
    result = cores[0].double()
    for core in cores[1:]:
        joined = torch.einsum("irs,jst->ijrt", result, core.double())
        result = joined.reshape(-1, *joined.shape[2:])
    return result
