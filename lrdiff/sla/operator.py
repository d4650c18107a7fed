"""`sla_attention`: route, attend over critical blocks, summarise the others linearly, combine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from lrdiff.errors import BackendError, ConfigError, ShapeError
from lrdiff.sla import inputs
from lrdiff.sla.blocks import SCOPES, BlockMap
from lrdiff.sla.features import check_features
from lrdiff.sla.mixing import left_out, mix_in
from lrdiff.sla.router import route

Projection = Callable[[Tensor], Tensor]
Scope = Literal["marginal", "noncritical", "all"]
FeatureMap = Literal["softmax", "elu", "relu"]
Layout = Literal["bhld", "blhd"]
BackendName = Literal["auto", "reference", "triton", "flex"]


@dataclass(frozen=True)
class Stats:
    """What a call did: its map, the log-sum-exp of the softmax branch and the backend that worked.

    `lse` is the natural logarithm, float32 (float64 for float64 inputs) [B, H, L] in either layout, differentiable.
    """

    block_map: BlockMap
    lse: Tensor
    backend: str


@overload
def sla_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    proj: Projection | None = ...,
    mix: Tensor | None = ...,
    topk: float = ...,
    skip: float = ...,
    block_q: int = ...,
    block_k: int = ...,
    scope: Scope = ...,
    feature_map: FeatureMap = ...,
    layout: Layout = ...,
    backend: BackendName = ...,
    return_stats: Literal[False] = ...,
    check_finite: bool = ...,
) -> Tensor: ...


@overload
def sla_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    proj: Projection | None = ...,
    mix: Tensor | None = ...,
    topk: float = ...,
    skip: float = ...,
    block_q: int = ...,
    block_k: int = ...,
    scope: Scope = ...,
    feature_map: FeatureMap = ...,
    layout: Layout = ...,
    backend: BackendName = ...,
    return_stats: Literal[True],
    check_finite: bool = ...,
) -> tuple[Tensor, Stats]: ...


def sla_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    proj: Projection | None = None,
    mix: Tensor | None = None,
    topk: float = 0.05,
    skip: float = 0.10,
    block_q: int = 128,
    block_k: int = 64,
    scope: Scope = "marginal",
    feature_map: FeatureMap = "softmax",
    layout: Layout = "bhld",
    backend: BackendName = "auto",
    return_stats: bool = False,
    check_finite: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """Compute O = Os + proj(Ol), sparse-linear attention (Zhang et al., arXiv 2509.24006, equations 2 to 8).

    With `mix`: O = Os + mix_h w_i (Ol - Os) + proj(Ol), w_i the part of attention that is left out of softmax.
    Os is softmax attention over the critical blocks, Ol linear attention over the blocks of `scope`. README.md has the
    equations, the differences between scopes and what each backend guarantees.

    Args:
        q: Queries, [B, H, L, D], or [B, L, H, D] for `layout="blhd"`. float16, bfloat16, float32 or float64.
        k: Keys, of the same shape and dtype.
        v: Values, likewise.
        proj: What is applied to Ol, [.., D] to [.., D]: one `nn.Linear(D, D)` per layer, shared by its heads, zero at
            the start of training. A Linear's weights are cast to the dtype of `q` for the product, so they may be
            float32 beside half-precision inputs. None adds nothing.
        mix: Share of each head, [H], of what softmax leaves out that the linear branch gives instead (`mixing.py`); in
            [0, 1] for a convex combination. None is the paper. Without `proj` and `mix` there is no linear branch: O =
            Os, and `scope` has no effect.
        topk: Share of key blocks that are critical, in (0, 1]; max(1, floor(topk n)) of n.
        skip: Share of key blocks that are negligible, in [0, 1); floor(skip n) of n. Scope "marginal" leaves them out;
            the other two scopes have no third class, so there it shapes only the map in the stats.
        block_q: Tokens in a query block: 16, 32, 64 or 128.
        block_k: Tokens in a key block, likewise.
        scope: "marginal": neither critical nor negligible blocks (the paper). "noncritical": all that are not
            critical. "all": every block.
        feature_map: phi of the linear branch: softmax over the features, elu + 1, or relu.
        layout: Order of the dimensions. Neither is copied.
        backend: "reference": plain torch, any device, forward and backward. "triton": the kernels. "flex":
            FlexAttention for the softmax branch. "auto": the kernels on CUDA, "reference" on a CPU.
        return_stats: Also return `Stats`.
        check_finite: Look for NaN and infinity in q, k and v first. Waits for the device.

    Returns:
        O in the shape, layout and dtype of `q`; with `return_stats`, O and the stats.

    Raises:
        ConfigError: A setting is unknown or out of range, or a dtype is not supported.
        ShapeError: Shapes, dtypes or devices disagree.
        BackendError: The backend cannot work on these tensors.
        DataError: With `check_finite`: a value is NaN or infinite.

    Differs from the paper:
        1/sqrt(d) in dQ and dK, and the sum of both branches in dV; Ol is 0 where its set of blocks is empty; `mix`.
    """
    _check_names(scope, feature_map, q)
    if check_finite:
        inputs.check_finite(q=q, k=k, v=v)
    inputs.check_tensors(*inputs.heads_first(layout, q, k, v))
    block_map = route(q, k, topk=topk, skip=skip, block_q=block_q, block_k=block_k, layout=layout, backend=backend)
    out, stats = _attend(q, k, v, block_map, proj, mix, scope, feature_map, layout, backend)
    return (out, stats) if return_stats else out


def sla_with_map(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    proj: Projection | None = None,
    mix: Tensor | None = None,
    scope: Scope = "marginal",
    feature_map: FeatureMap = "softmax",
    layout: Layout = "bhld",
    backend: BackendName = "auto",
) -> tuple[Tensor, Stats]:
    """Compute the same with a given map, from `route` or `BlockMap.from_classes`; rows may differ in length.

    Arguments, results and errors are those of `sla_attention`. The map's batch, heads and numbers of blocks must fit.
    """
    _check_names(scope, feature_map, q)
    return _attend(q, k, v, block_map, proj, mix, scope, feature_map, layout, backend)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    proj: Projection | None,
    mix: Tensor | None,
    scope: str,
    feature_map: str,
    layout: str,
    backend: str,
) -> tuple[Tensor, Stats]:
    qh, kh, vh = inputs.heads_first(layout, q, k, v)
    inputs.check_tensors(qh, kh, vh)
    _check_map(block_map, qh)
    chosen = inputs.choose(backend, qh)
    wanted = scope if proj is not None or mix is not None else None
    sparse, linear, lse = _branches(chosen, qh, kh, vh, block_map, wanted, feature_map)
    if linear is not None and mix is not None:
        sparse = mix_in(sparse, linear, mix, left_out(qh, kh, block_map, scope))
    if layout == "blhd":
        sparse = sparse.transpose(1, 2)
        linear = None if linear is None else linear.transpose(1, 2)
    out = sparse if linear is None or proj is None else sparse + project(proj, linear).to(sparse.dtype)
    return out, Stats(block_map, lse, chosen)


def _branches(
    backend: str, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, scope: str | None, feature_map: str
) -> tuple[Tensor, Tensor | None, Tensor]:
    lists, counts, sizes = block_map.lists, block_map.counts, (block_map.block_q, block_map.block_k)
    if backend == "triton":
        from lrdiff.sla import triton_ops

        sparse, lse = triton_ops.sparse(q, k, v, lists, counts, *sizes)
        linear = None if scope is None else triton_ops.linear_branch(q, k, v, block_map, scope, feature_map)
        return sparse, linear, lse
    from lrdiff.sla.linear import linear_branch

    if backend == "flex":
        from lrdiff.sla.flex import flex_sparse

        sparse, lse = flex_sparse(q, k, v, block_map)
    else:
        from lrdiff.sla.gather import gather

        sparse, lse = gather(q, k, v, lists, counts, *sizes)
    return sparse, None if scope is None else linear_branch(q, k, v, block_map, scope, feature_map), lse


def project(proj: Projection, linear: Tensor) -> Tensor:
    """Return proj(linear), [.., D]; a Linear's weights are cast to the dtype of `linear` for the product.

    Raises:
        ShapeError: A Linear has another width.
        BackendError: It is on another device.
    """
    if not isinstance(proj, nn.Linear):
        return proj(linear)
    width = linear.shape[-1]
    if (proj.in_features, proj.out_features) != (width, width):
        raise ShapeError(
            f"proj maps {proj.in_features} to {proj.out_features} features; heads here have {width}, so it must be "
            f"nn.Linear({width}, {width})"
        )
    if proj.weight.device != linear.device:
        raise BackendError(f"proj is on {proj.weight.device}, the queries on {linear.device}: move it there")
    bias = None if proj.bias is None else proj.bias.to(linear.dtype)
    return nn.functional.linear(linear, proj.weight.to(linear.dtype), bias)


def _check_names(scope: str, feature_map: str, q: Tensor) -> None:
    if scope not in SCOPES:
        raise ConfigError(f"scope is {scope!r}; there are {', '.join(SCOPES)}")
    check_features(feature_map, q.dtype)


def _check_map(block_map: BlockMap, q: Tensor) -> None:
    batch, heads, length, _ = q.shape
    wanted = (batch, heads, -(-length // block_map.block_q), -(-length // block_map.block_k))
    if tuple(block_map.classes.shape) != wanted:
        raise ShapeError(
            f"the block map is {list(block_map.classes.shape)}; {length} tokens in blocks of {block_map.block_q} and "
            f"{block_map.block_k} need {list(wanted)} (batch, heads, query blocks, key blocks)"
        )
    if block_map.classes.device != q.device:
        raise ShapeError(f"the block map is on {block_map.classes.device}, the queries on {q.device}: move it there")


def zero_projection(features: int) -> nn.Linear:
    """Return the projection a layer starts with: `nn.Linear(features, features)` in float32, all zero."""
    proj = nn.Linear(features, features, dtype=torch.float32)
    nn.init.zeros_(proj.weight)
    nn.init.zeros_(proj.bias)
    return proj
