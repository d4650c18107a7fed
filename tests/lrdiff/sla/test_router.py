"""The map: amounts, ties, tails, lists and their inverse."""

from __future__ import annotations

import pytest
import torch

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.sla import BlockMap, reference, route
from lrdiff.sla.blocks import amounts, columns
from lrdiff.sla.router import block_means
from tests.lrdiff.sla.cases import draw, ragged


@pytest.mark.parametrize(
    ("blocks", "topk", "skip", "wanted"),
    [
        (512, 0.05, 0.10, (25, 51)),
        (3, 0.05, 0.10, (1, 0)),
        (1, 0.05, 0.10, (1, 0)),
        (100, 0.29, 0.57, (29, 57)),
        (10, 1.0, 0.10, (10, 0)),
    ],
)
def test_amounts(blocks: int, topk: float, skip: float, wanted: tuple[int, int]) -> None:
    assert amounts(blocks, topk, skip) == wanted


@pytest.mark.parametrize(("topk", "skip"), [(0, 0.1), (-0.1, 0.1), (1.01, 0), (0.5, 1.0), (0.5, -0.1), (0.6, 0.5)])
def test_shares_out_of_range_are_refused(topk: float, skip: float) -> None:
    with pytest.raises(ConfigError, match=r"topk|skip"):
        amounts(10, topk, skip)


@pytest.mark.parametrize("length", [5, 64, 75, 150])
def test_router_is_the_papers(length: int) -> None:
    q, k, _ = draw(2, 3, length, 8)
    found = route(q, k, topk=0.4, skip=0.3, block_q=32, block_k=16)
    critical, negligible = amounts(-(-length // 16), 0.4, 0.3)
    assert torch.equal(found.classes, reference.route(q, k, critical, negligible, 32, 16))
    again = BlockMap.from_classes(found.classes, block_q=32, block_k=16)
    assert torch.equal(again.lists, found.lists)
    assert torch.equal(again.counts, found.counts)
    assert found.lists.dtype == torch.int32
    assert (found.lists.diff(dim=-1) > 0).all()
    assert not found.classes.requires_grad


def test_equal_scores_prefer_lower_indices() -> None:
    q = torch.ones(1, 1, 64, 4)
    found = route(q, q, topk=0.5, skip=0.25, block_q=16, block_k=16)
    assert found.classes[0, 0].tolist() == [[1, 1, 0, -1]] * 4


@pytest.mark.parametrize(("length", "block", "last"), [(32760, 64, 56), (32760, 128, 120)])
def test_the_tails_mean_divides_by_its_true_count(length: int, block: int, last: int) -> None:
    x = torch.zeros(1, 1, length, 1)
    x[:, :, -last:] = 1
    means = block_means(x, block)
    assert means.shape[2] == -(-length // block)
    assert means[0, 0, -1, 0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_columns_invert_the_lists(seed: int) -> None:
    block_map = ragged(2, 2, 150, 32, 16, seed)
    rows, starts, order = columns(block_map.lists, block_map.counts, 10)
    for b in range(2):
        for h in range(2):
            sizes = []
            for j in range(10):
                inside = rows[b, h, starts[b, h, j] : starts[b, h, j + 1]].tolist()
                assert inside == (block_map.classes[b, h, :, j] == 1).nonzero().flatten().tolist()
                sizes.append(len(inside))
            assert sizes[0] == 5
            assert sizes[1] == 0
            assert [sizes[j] for j in order[b, h].tolist()] == sorted(sizes, reverse=True)


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one critical"):
        BlockMap.from_classes(torch.zeros(1, 1, 2, 2, dtype=torch.int8), block_q=16, block_k=16)
    with pytest.raises(ShapeError, match="only"):
        BlockMap.from_classes(torch.full((1, 1, 2, 2), 2), block_q=16, block_k=16)
    with pytest.raises(ShapeError, match="integer"):
        BlockMap.from_classes(torch.ones(1, 1, 2, 2), block_q=16, block_k=16)
    with pytest.raises(ConfigError, match="block_q"):
        BlockMap.from_classes(torch.ones(1, 1, 2, 2, dtype=torch.int8), block_q=48, block_k=16)
