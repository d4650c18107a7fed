"""The truth, straight from the equations of README.md: slow, dense, for any floating type. Tests compare with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lrdiff.sla.blocks import CRITICAL, MARGINAL
from lrdiff.sla.features import phi


class Parts(NamedTuple):
    """Both branches before they are combined, and the softmax branch's log-sum-exp (natural logarithm)."""

    sparse: Tensor
    linear: Tensor
    lse: Tensor


class Gradients(NamedTuple):
    """Gradients for q, k, v, the projection's weight and its bias."""

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    bias: Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def tokens(blocks: Tensor, block_q: int, block_k: int, length: int) -> Tensor:
    """Spread a map of blocks, [B, H, M, N], over tokens: [B, H, L, L]."""
    spread = blocks.repeat_interleave(block_q, -2).repeat_interleave(block_k, -1)
    return spread[..., :length, :length]


def members(classes: Tensor, scope: str) -> Tensor:
    """Return the linear branch's blocks under `scope`, booleans like `classes`."""
    return {"marginal": classes == MARGINAL, "noncritical": classes != CRITICAL, "all": torch.ones_like(classes) > 0}[
        scope
    ]


def route(q: Tensor, k: Tensor, critical: int, negligible: int, block_q: int, block_k: int) -> Tensor:
    """Classify blocks by P = softmax(mean(Q) mean(K)^T / sqrt(d)), equations 2 and 3 of the paper.

    Among equal probabilities the block with the lower index counts as the larger one.

    Args:
        q: Queries, [B, H, L, D].
        k: Keys, [B, H, L, D].
        critical: Blocks per row that become 1.
        negligible: Blocks per row that become -1.
        block_q: Tokens in a query block.
        block_k: Tokens in a key block.

    Returns:
        int8 [B, H, M, N].
    """
    means = [
        torch.stack([part.mean(-2) for part in _wide(x).split(b, -2)], -2) for x, b in ((q, block_q), (k, block_k))
    ]
    p = (means[0] @ means[1].transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    order = p.sort(dim=-1, descending=True, stable=True).indices
    classes = torch.zeros(p.shape, dtype=torch.int8, device=q.device)
    classes.scatter_(-1, order[..., :critical], 1)
    return classes.scatter_(-1, order[..., p.shape[-1] - negligible :], -1)


def naive(
    q: Tensor, k: Tensor, v: Tensor, classes: Tensor, *, block_q: int, block_k: int, scope: str, feature_map: str
) -> Parts:
    """Compute both branches as masked L x L matrices.

        Os = softmax(Q K^T / sqrt(d) over critical tokens) V
        Ol = (A V) / (A 1),   A = phi(Q) phi(K)^T over the scope's tokens; 0 where A 1 = 0

    Args:
        q: Queries, [B, H, L, D]; k and v alike. Half precision is widened to float32.
        k: Keys.
        v: Values.
        classes: Block map, [B, H, M, N] of 1, 0, -1.
        block_q: Tokens in a query block.
        block_k: Tokens in a key block.
        scope: Which blocks the linear branch sees.
        feature_map: phi.
    """
    q, k, v = _wide(q), _wide(k), _wide(v)
    seen = tokens(classes == CRITICAL, block_q, block_k, q.shape[-2])
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    weights = phi(q, feature_map) @ phi(k, feature_map).transpose(-1, -2)
    weights = weights * tokens(members(classes, scope), block_q, block_k, q.shape[-2])
    total = weights.sum(-1, keepdim=True)
    linear = torch.where(total > 0, (weights @ v) / torch.where(total > 0, total, 1), 0)
    return Parts(scores.softmax(-1) @ v, linear, scores.logsumexp(-1))


def combine(parts: Parts, weight: Tensor, bias: Tensor) -> Tensor:
    """Return O = Os + Ol W^T + c."""
    return parts.sparse + parts.linear @ weight.mT + bias


def left_out(q: Tensor, k: Tensor, classes: Tensor, *, block_q: int, block_k: int, scope: str) -> Tensor:
    """Estimate what softmax leaves to the linear branch, as if all tokens of a block were its mean: [B, H, L, 1].

    Attention of the mean query over L keys, each the mean of its block, summed over the scope's blocks that are not
    critical.
    """
    length = q.shape[-2]
    means = [
        torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in _wide(x).split(b, -2)], -2)
        for x, b in ((q, block_q), (k, block_k))
    ]
    p = (means[0] @ means[1].mT / math.sqrt(q.shape[-1])).softmax(-1)
    rest = members(classes, scope) & (classes != CRITICAL)
    return (p * tokens(rest, block_q, block_k, length)).sum(-1, keepdim=True)


def mixed(parts: Parts, share: Tensor, left: Tensor) -> Parts:
    """Replace Os by Os + s w (Ol - Os): share is s, [H], left is w, [B, H, L, 1]."""
    weight = share[:, None, None] * left
    return parts._replace(sparse=(1 - weight) * parts.sparse + weight * parts.linear)


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, classes: Tensor, *, block_q: int, block_k: int, scope: str, feature_map: str
) -> Parts:
    """Compute the same for one head, block by block, with an online softmax and the sums h_j and z_j.

    q, k, v are [L, D] and classes [M, N]. This is the second formula: it shares nothing with `naive` but phi.
    """
    qs, ks, vs = _wide(q).split(block_q), _wide(k).split(block_k), _wide(v).split(block_k)
    h = [phi(kj, feature_map).T @ vj for kj, vj in zip(ks, vs, strict=True)]
    z = [phi(kj, feature_map).sum(0) for kj in ks]
    inside = members(classes, scope)
    sparse, linear, lse = [], [], []
    for i, qi in enumerate(qs):
        m = qi.new_full((len(qi), 1), -math.inf)
        total, acc = torch.zeros_like(m), torch.zeros_like(qi)
        for j in (classes[i] == CRITICAL).nonzero().flatten().tolist():
            s = qi @ ks[j].T / math.sqrt(q.shape[-1])
            top = torch.maximum(m, s.amax(-1, keepdim=True))
            p, shrink = (s - top).exp(), (m - top).exp()
            total, acc, m = total * shrink + p.sum(-1, keepdim=True), acc * shrink + p @ vs[j], top
        sparse.append(acc / total)
        lse.append((m + total.log()).squeeze(-1))
        chosen = inside[i].nonzero().flatten().tolist()
        if chosen:
            f = phi(qi, feature_map)
            den = f @ torch.stack([z[j] for j in chosen]).sum(0)
            num = f @ torch.stack([h[j] for j in chosen]).sum(0)
            inverse = torch.where(den > 0, 1 / torch.where(den > 0, den, 1), 0)
            linear.append(num * inverse.unsqueeze(-1))
        else:
            linear.append(torch.zeros_like(qi))
    return Parts(torch.cat(sparse), torch.cat(linear), torch.cat(lse))


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    classes: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    block_q: int,
    block_k: int,
    scope: str,
    feature_map: str,
) -> Gradients:
    """Return all gradients for one head by the paper's algorithm 2 with its two corrections (README.md).

    q, k, v and grad are [L, D], classes [M, N], weight [D, D]. dQ and dK carry 1/sqrt(d), and the linear branch's dV is
    added to the softmax branch's.
    """
    parts = blockwise(q, k, v, classes, block_q=block_q, block_k=block_k, scope=scope, feature_map=feature_map)
    root = math.sqrt(q.shape[-1])
    grad_linear = grad @ weight
    ds = (grad * parts.sparse).sum(-1)
    dl = (grad_linear * parts.linear).sum(-1)
    rows = [slice(i, i + block_q) for i in range(0, len(q), block_q)]
    cols = [slice(j, j + block_k) for j in range(0, len(q), block_k)]
    fq, fk = phi(q, feature_map), phi(k, feature_map)
    dq, dk, dv, dfq, dfk = (torch.zeros_like(x) for x in (q, k, v, q, k))
    inside = members(classes, scope)
    for i, a in enumerate(rows):
        for j in (classes[i] == CRITICAL).nonzero().flatten().tolist():
            b = cols[j]
            p = (q[a] @ k[b].T / root - parts.lse[a, None]).exp()
            d = p * (grad[a] @ v[b].T - ds[a, None])
            dq[a] += d @ k[b] / root
            dk[b] += d.T @ q[a] / root
            dv[b] += p.T @ grad[a]
        chosen = inside[i].nonzero().flatten().tolist()
        if not chosen:
            continue
        h = torch.stack([fk[cols[j]].T @ v[cols[j]] for j in chosen]).sum(0)
        z = torch.stack([fk[cols[j]].sum(0) for j in chosen]).sum(0)
        den = (fq[a] @ z).unsqueeze(-1)
        scaled = torch.where(den > 0, fq[a] / torch.where(den > 0, den, 1), 0)
        dh, dz = scaled.T @ grad_linear[a], -scaled.T @ dl[a]
        dfq[a] = torch.where(den > 0, (grad_linear[a] @ h.T - dl[a, None] * z) / torch.where(den > 0, den, 1), 0)
        for j in chosen:
            b = cols[j]
            dfk[b] += v[b] @ dh.T + dz
            dv[b] += fk[b] @ dh
    dq += _jacobian(q, fq, dfq, feature_map)
    dk += _jacobian(k, fk, dfk, feature_map)
    return Gradients(dq, dk, dv, grad.T @ parts.linear, grad.sum(0))


def _jacobian(x: Tensor, f: Tensor, df: Tensor, feature_map: str) -> Tensor:
    if feature_map == "softmax":
        return f * (df - (df * f).sum(-1, keepdim=True))
    if feature_map == "elu":
        return df * torch.where(x > 0, 1, x.exp())
    return df * (x > 0)
