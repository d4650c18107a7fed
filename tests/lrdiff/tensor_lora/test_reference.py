"""The slow truth, checked by other formulas before anything is compared with it."""

from __future__ import annotations

import itertools

import pytest
import torch

from lrdiff.tensor_lora import reference
from tests.lrdiff.tensor_lora.models import draw


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transform_is_the_trace_of_core_products(rank: int) -> None:
    modes = (2, 3, 2)
    cores = [draw(m, m, rank, rank, seed=m + place) for place, m in enumerate(modes)]
    matrix = reference.transform(cores).view(*modes, *modes)
    for i, j in itertools.product(itertools.product(*map(range, modes)), repeat=2):
        product = torch.eye(rank)
        for d, core in enumerate(cores):
            product = product @ core[i[d], j[d]]
        assert matrix[(*i, *j)].item() == pytest.approx(product.trace().item(), abs=1e-5)


def test_rank_one_is_a_kronecker_product_first_core_slowest() -> None:
    cores = [draw(m, m, 1, 1, seed=m) for m in (2, 3, 4)]
    expected = torch.kron(torch.kron(cores[0][..., 0, 0], cores[1][..., 0, 0]), cores[2][..., 0, 0])
    torch.testing.assert_close(reference.transform(cores), expected.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(reference.kronecker(cores), expected.double(), rtol=1e-6, atol=1e-6)


def test_ring_is_the_trace_of_core_products() -> None:
    out, into, rank = (2, 3), (3, 2, 2), 3
    b = [draw(n, rank, rank, seed=n + 10 * place) for place, n in enumerate(out)]
    c = [draw(n, rank, rank, seed=n + 100 * place) for place, n in enumerate(into)]
    matrix = reference.ring(b, c).view(*out, *into)
    for place in itertools.product(*map(range, (*out, *into))):
        product = torch.eye(rank)
        for core, index in zip([*b, *c], place, strict=True):
            product = product @ core[index]
        assert matrix[place].item() == pytest.approx(product.trace().item(), abs=1e-4)


def test_the_reference_is_differentiable_as_it_claims() -> None:
    cores = [draw(m, m, 2, 2, seed=m, dtype=torch.float64).requires_grad_() for m in (2, 3)]
    assert torch.autograd.gradcheck(lambda *c: reference.transform(c), cores)
    ring = [draw(n, 2, 2, seed=n, dtype=torch.float64).requires_grad_() for n in (2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *c: reference.ring(c[:1], c[1:]), ring)


def test_weight_interpolates_between_base_and_adapted() -> None:
    base, matrix, residual = draw(3, 4), draw(4, 4, seed=1), draw(3, 4, seed=2)
    torch.testing.assert_close(reference.weight(base, matrix, residual, 0.5, 0.0), base.double())
    full = base.double() @ matrix.double() + 0.5 * residual.double()
    torch.testing.assert_close(reference.weight(base, matrix, residual, 0.5), full)
