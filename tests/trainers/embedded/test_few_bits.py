"""Few bits at a time: bits that are read badly come more often, and their number grows only while they are read."""

from __future__ import annotations

import pytest
import torch

from lrdiff.rng import stream
from trainers.embedded.few_bits import FIRST, SHARE, FewBits


def test_a_part_of_the_pictures_carries_few_bits_and_the_rest_all() -> None:
    carried = FewBits(48).draw(40, stream(0, "c"))
    counts = carried.sum(1)
    assert set(carried.unique().tolist()) == {0.0, 1.0}
    assert int((counts < 48).sum()) == int(40 * SHARE)
    few = counts[counts < 48]
    assert (int(few.min()), int(few.max())) == (FIRST // 2, FIRST)
    assert torch.equal(carried, FewBits(48).draw(40, stream(0, "c")))


def test_bits_that_are_read_badly_come_more_often() -> None:
    few = FewBits(20)
    few.get_buffer("read")[:] = torch.tensor([0.5] * 5 + [1.0] * 15)
    carried = few.draw(200, stream(0, "c"))[: int(200 * SHARE)]
    assert float(carried[:, :5].mean()) > 0.9
    assert 0.05 < float(carried[:, 5:].mean()) < 0.6, "and the others are not forgotten"


@pytest.mark.parametrize(("read", "grows"), [(1.0, True), (0.5, False)])
def test_their_number_grows_only_while_they_are_read(read: float, grows: bool) -> None:
    few = FewBits(12)
    for _ in range(200):
        carried = few.draw(8, stream(0, "c"))
        few.note((torch.rand(8, 12, generator=stream(0, "r")) < read).float(), carried)
    assert float(few.get_buffer("few")) == (12.0 if grows else 10.0)
    assert float(few.get_buffer("read").mean()) == pytest.approx(1.0 if grows else 0.5, abs=0.2)


def test_only_carried_bits_count() -> None:
    few, carried = FewBits(4), torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 8)
    for _ in range(200):
        few.note(carried, carried)
    assert float(few.get_buffer("few_read")) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(few.get_buffer("read"), torch.full((4,), 0.75)), (
        "of pictures that carry all bits there were none"
    )
