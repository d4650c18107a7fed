"""Marks from a decoder's own activations: filters for each bit, of the strength asked for, and none at the border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lrdiff.rng import stream
from tests.trainers.embedded.conftest import TINY_EXTRACTOR
from trainers.embedded.extractor import ExtractorConfig, TrainExtractor, views
from trainers.embedded.keyed import FRAME, MAPS, Drawn, Keyed, draw
from trainers.embedded.shards import Shards

BITS = 6


def autoencoder() -> Any:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=1, **blocks).eval()


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    images = torch.rand(6, 3, 48, 56, generator=stream(0, "i")) * 2 - 1
    left = iter(images.split(2))
    return draw(autoencoder(), lambda count: next(left)[:count], 6, chunk=2)


@pytest.fixture
def inner(drawn: Drawn) -> tuple[Tensor, Tensor]:
    return drawn.inner(torch.arange(3))


def messages(count: int) -> Tensor:
    return torch.randint(0, 2, (count, BITS), generator=stream(0, "bits")).float()


def test_pictures_are_the_decoders_and_it_stays_as_it_was() -> None:
    vae, images = autoencoder(), torch.rand(2, 3, 20, 20, generator=stream(0, "i"))
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        found = draw(vae, lambda count: images[:count], 2)
        after = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    assert torch.equal(before, after)
    torch.testing.assert_close(found.pictures.float() / 127.5 - 1, before, atol=0.005, rtol=0)


def test_maps_are_uncorrelated_and_of_one_size(drawn: Drawn) -> None:
    maps = drawn.maps.double()
    assert maps.shape[0] == 6
    assert 1 < maps.shape[1] <= MAPS
    torch.testing.assert_close(maps.mean((2, 3)), torch.zeros_like(maps[:, :, 0, 0]), atol=2e-3, rtol=0)
    flat = maps.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(len(flat)).double(), atol=5e-3, rtol=0)


def test_maps_are_cut_where_the_picture_is(drawn: Drawn) -> None:
    pictures, maps = drawn.cut(torch.tensor([4]), 10, 8, 16, 24)
    assert torch.equal(pictures, drawn.pictures[4:5, :, 10:26, 8:32].float() / 127.5 - 1)
    assert torch.equal(maps, drawn.maps[4:5, :, 3:15, 2:18].float())


@pytest.mark.parametrize("psnr", [20.0, 32.0])
def test_marks_have_the_psnr_that_was_asked_for(inner: tuple[Tensor, Tensor], psnr: float) -> None:
    pictures, maps = inner[0] * 0.5, inner[1]  # nothing is clipped
    assert pictures.shape == (3, 3, 48 - 2 * FRAME, 56 - 2 * FRAME)
    keyed, bits = Keyed(maps.shape[1], BITS), messages(3)
    with torch.no_grad():
        marked, other = keyed(pictures, maps, bits, psnr), keyed(pictures, maps, 1 - bits, psnr)
    error = (marked - pictures).square().mean((1, 2, 3))
    torch.testing.assert_close(10 * torch.log10(4 / error), torch.full((3,), psnr), atol=0.05, rtol=0)
    assert float((other - marked).abs().max()) > 0.01


def test_a_message_adds_up_its_filters_all_of_one_size() -> None:
    torch.manual_seed(0)
    keyed, pictures, maps = Keyed(2, 3), torch.zeros(1, 3, 8, 8), torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        before = keyed(pictures, maps, torch.tensor([[0.0, 1.0, 1.0]]), 30.0)
        keyed.filters[1].mul_(7)  # the size of a filter says nothing
        keyed.filters[0].neg_()  # the first bit's filter for 0 ...
        keyed.filters[3].copy_(-keyed.filters[0])  # ... is now the one for 1
        after = keyed(pictures, maps, torch.tensor([[1.0, 1.0, 1.0]]), 30.0)
    torch.testing.assert_close(after, before)
    keyed.filters.data[1].copy_(keyed.filters.data[4])  # the second bit writes the same for 0 and 1
    written = [keyed(pictures, maps, torch.tensor([bits]), 30.0) for bits in ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0])]
    assert torch.equal(*written)


def test_marks_move_with_the_picture() -> None:
    torch.manual_seed(0)
    keyed, bits = Keyed(2, BITS), torch.ones(1, BITS)
    pictures, maps = torch.zeros(1, 3, 40, 40), torch.zeros(1, 2, 24, 24)
    maps[..., 8:12, 8:12] = torch.randn(2, 4, 4)
    with torch.no_grad():
        written, moved = keyed(pictures, maps, bits, 30.0), keyed(pictures, maps.roll((2, 3), (2, 3)), bits, 30.0)
    torch.testing.assert_close(moved[..., 4:, 6:], written[..., :-4, :-6])


def test_bits_that_are_not_carried_change_nothing(inner: tuple[Tensor, Tensor]) -> None:
    keyed, bits, carried = Keyed(inner[1].shape[1], BITS), messages(3), torch.ones(3, BITS)
    carried[:, 2] = 0
    other = bits.clone()
    other[:, 2] = 1 - other[:, 2]
    with torch.no_grad():
        assert torch.equal(keyed(*inner, bits, 30.0, carried), keyed(*inner, other, 30.0, carried))
        assert not torch.equal(keyed(*inner, bits, 30.0), keyed(*inner, other, 30.0))


def test_an_extractor_learns_with_them(scenes: Shards, tmp_path: Path) -> None:
    autoencoder().save_pretrained(tmp_path / "vae")
    values = {**TINY_EXTRACTOR, "scenes": scenes.path, "bits": BITS, "batch_size": 6, "decoder": tmp_path / "vae"}
    method = TrainExtractor(ExtractorConfig.model_validate(values))
    batch = method.batch(0, stream(0, "b"))
    assert (batch["images"].shape[0], batch["drawn"].shape[0], len(batch["bits"])) == (3, 3, 6)
    assert (batch["drawn"].shape[-1], batch["maps"].shape[-1]) == (32, 20)
    loss, metrics = method(batch, stream(0, "f"))
    loss.backward()
    assert "accuracy_keyed" in metrics
    grouped = {id(p): p.grad for group in method.param_groups() for p in group.params}
    trained = [p for p in method.parameters() if p.requires_grad]
    assert set(grouped) == {id(p) for p in trained}
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    found = method.evaluate(stream(0, "e"))
    assert {f"keyed_{name}" for name in views(torch.zeros(1, 3, 40, 40))} <= set(found)
