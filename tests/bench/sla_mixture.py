"""`python -m tests.bench.sla_mixture`: what of softmax attention each way of combining both branches can give back.

The error of softmax over critical blocks alone, O - Os, in every attention layer of an untouched model, is fitted by
least squares on half of the held-out pictures of `sla_quality` and explained in the other half: by a linear map of Ol,
as in the paper's sum, and by s w (Ol - Os), as in the mixture, with one s for a layer, one for a head, or its start.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lrdiff import backbones
from lrdiff.sla import route, sla_with_map
from lrdiff.sla.linear import linear_branch
from lrdiff.sla.mixing import START, left_out
from lrdiff.sla.models import processors, put_in
from lrdiff.sla.settings import SlaSettings
from tests.bench.result import RESULTS, command, write
from tests.bench.sla_quality import Plan, noisy, pictures

COLUMNS = (
    "sparsity", "scope", "weight of critical blocks", "the router's estimate", "explained by a linear map of Ol",
    "by s w (Ol - Os), s = 0.5", "one s per layer", "one s per head", "smallest s", "largest s",
)  # fmt: skip
RIDGE = 1e-4
"""Of the mean of the diagonal: what keeps the fit of a linear map defined."""

Layer = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def layers(plan: Plan, count: int) -> list[Layer]:
    """Return queries, keys and values of every layer, [B, H, L, D] each, as full attention meets them."""
    backbone = backbones.load(plan.model, device=torch.device(plan.device), dtype=torch.float32)
    pictures(plan, backbone.resolution)
    x, times, cond = noisy(plan, backbone)[:3]
    put_in(backbone.denoiser, SlaSettings(topk=1.0, block_q=plan.block, block_k=plan.block))
    found: list[Layer] = []

    def listening(attend: Any) -> Any:
        def listen(q: Tensor, k: Tensor, v: Tensor, text: int = 0) -> Tensor:
            found.append((q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))
            return attend(q, k, v, text)

        return listen

    for _, processor in processors(backbone.denoiser):
        processor.attend = listening(processor.attend)
    backbone.predict(x[:count], times[:count], {name: value[:count] for name, value in cond.items()})
    return found


def explained(error: Tensor, given: Tensor) -> float:
    """Return the share of the squares of `error` that `given` takes away."""
    return 1 - float((error - given).square().sum() / error.square().sum())


def fitted(features: Tensor, error: Tensor, others: Tensor) -> Tensor:
    """Return what a linear map with a bias, fitted on features and error, makes of other features; all [.., D]."""
    x = pad(features.flatten(0, -2), (0, 1), value=1.0)
    square = x.mT @ x
    weight = torch.linalg.solve(
        square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), x.mT @ error.flatten(0, -2)
    )
    return pad(others, (0, 1), value=1.0) @ weight


@torch.no_grad()
def measure(layer: Layer, topk: float, scope: str, block: int) -> dict[str, Any]:
    """Return the figures of one layer."""
    q, k, v = layer
    block_map = route(q, k, topk=topk, block_q=block, block_k=block)
    sparse, stats = sla_with_map(q, k, v, block_map)
    linear = linear_branch(q, k, v, block_map, scope, "softmax")
    total = (q @ k.mT / q.shape[-1] ** 0.5).logsumexp(-1)
    error = scaled_dot_product_attention(q, k, v) - sparse
    toward = left_out(q, k, block_map, scope) * (linear - sparse)
    half = len(q) // 2
    seen, unseen = error[:half], error[half:]

    def best(dims: tuple[int, ...]) -> Tensor:
        products = (toward[:half] * seen).sum(dims, keepdim=True)
        return products / toward[:half].square().sum(dims, keepdim=True)

    heads = best((0, 2, 3))
    return {
        "kept": float((stats.lse - total).exp().mean()),
        "estimated": 1 - float(left_out(q, k, block_map, "all").mean()),
        "map": explained(unseen, fitted(linear[:half], seen, linear[half:])),
        "start": explained(unseen, START * toward[half:]),
        "layer": explained(unseen, best((0, 1, 2, 3)) * toward[half:]),
        "head": explained(unseen, heads * toward[half:]),
        "least": float(heads.min()),
        "most": float(heads.max()),
    }


def main(arguments: list[str]) -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_mixture", description=__doc__)
    parser.add_argument("--model", default="toys-dit")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench/sla_quality"), help="of rendered pictures")
    parser.add_argument("--count", type=int, default=16, help="pictures, half to fit and half to judge")
    parser.add_argument("--topk", type=float, nargs="+", default=(0.2, 0.1, 0.05))
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = Plan(given.model, given.folder, 2 * given.count, 0, 0, 0, (), 0, given.block, "cpu", "fp32")
    found = layers(plan, given.count)
    settings = {topk: SlaSettings(topk=topk, block_q=given.block, block_k=given.block) for topk in given.topk}
    rows: list[list[Any]] = []
    for topk, own in settings.items():
        for scope in ("marginal", "noncritical", "all"):
            parts = [measure(layer, topk, scope, given.block) for layer in found]
            means = [statistics.fmean(part[name] for part in parts) for name in list(parts[0])[:-2]]
            ends = [min(part["least"] for part in parts), max(part["most"] for part in parts)]
            rows.append([own.sparsity(found[0][0].shape[2]), scope, *means, *ends])
            print(*(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in rows[-1]), sep="  ", flush=True)
    if given.results == RESULTS:
        note = (
            f"Means over {len(found)} layers of {given.model}, untouched; least squares on {given.count // 2} held-out "
            f"pictures with noise of any strength, explained in {given.count - given.count // 2} others; below 0: "
            f"worse than nothing. Blocks of {given.block} tokens."
        )
        write("sla_mixture", command("sla_mixture", arguments), COLUMNS, rows, note)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
