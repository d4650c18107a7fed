"""The truth against itself: a second formula, the hand-written backward pass, finite differences."""

from __future__ import annotations

import pytest
import torch

from lrdiff.sla import reference
from tests.lrdiff.sla.cases import FEATURES, SCOPES, draw, gradients, projection, ragged, sizes

LENGTH, WIDTH = 37, 6


def setting(scope: str, feature_map: str) -> tuple:
    block_map = ragged(1, 1, LENGTH, 16, 16, seed=1)
    return draw(1, 1, LENGTH, WIDTH), block_map, sizes(block_map) | {"scope": scope, "feature_map": feature_map}


@pytest.mark.parametrize("feature_map", FEATURES)
@pytest.mark.parametrize("scope", SCOPES)
def test_two_formulas_agree(scope: str, feature_map: str) -> None:
    qkv, block_map, settings = setting(scope, feature_map)
    one = reference.naive(*qkv, block_map.classes, **settings)
    two = reference.blockwise(*(x[0, 0] for x in qkv), block_map.classes[0, 0], **settings)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a[0, 0], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("feature_map", FEATURES)
@pytest.mark.parametrize("scope", SCOPES)
def test_corrected_equations_give_the_gradients(scope: str, feature_map: str) -> None:
    qkv, block_map, settings = setting(scope, feature_map)
    proj = projection(WIDTH)
    out = reference.combine(reference.naive(*qkv, block_map.classes, **settings), proj.weight, proj.bias)
    exact = gradients(out, [*qkv, proj.weight, proj.bias])
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(77), dtype=torch.float64)[0, 0]
    flat = [x.detach()[0, 0] for x in qkv]
    found = reference.backward(*flat, block_map.classes[0, 0], proj.weight.detach(), grad, **settings)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b.view(a.shape), rtol=1e-10, atol=1e-12)


def test_finite_differences() -> None:
    qkv, block_map, settings = setting("marginal", "softmax")
    proj = projection(WIDTH)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return reference.combine(reference.naive(q, k, v, block_map.classes, **settings), w, proj.bias)

    assert torch.autograd.gradcheck(run, (*qkv, proj.weight), atol=1e-6, fast_mode=True)


def test_routing_is_the_papers_softmax() -> None:
    q, k, _ = draw(2, 2, 100, 8)
    classes = reference.route(q, k, 2, 1, 32, 16)
    assert ((classes == 1).sum(-1) == 2).all()
    assert ((classes == -1).sum(-1) == 1).all()
    first = (q[0, 0, :32].mean(0) @ torch.stack([x.mean(0) for x in k[0, 0].split(16)]).T).argsort(descending=True)
    assert classes[0, 0, 0, first[:2]].tolist() == [1, 1]
    assert classes[0, 0, 0, first[-1]] == -1
