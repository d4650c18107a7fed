"""A decoder's own marks: one change of weights for each bit, of the strength asked for, and none at the border."""

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
from trainers.embedded.keyed import FRAME, Keyed, KeyedConv, features_of
from trainers.embedded.shards import Shards

BITS = 6


def autoencoder() -> Any:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=1, **blocks).eval()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 16, 40, 48, generator=stream(0, "features"))


def messages(count: int) -> Tensor:
    return torch.randint(0, 2, (count, BITS), generator=stream(0, "bits")).float()


def chosen(bits: Tensor) -> Tensor:
    return torch.cat([1 - bits, bits], dim=1)


def test_every_message_has_weights_of_its_own_and_all_changes_the_same_size() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(4, 5, 3, padding=1)
    layer, images = KeyedConv(plain, BITS), torch.randn(2, 4, 9, 9)
    none, one = chosen(torch.zeros(1, BITS)), chosen(torch.eye(BITS))
    with torch.no_grad():
        layer.changes[3].mul_(7)
        differences = layer.weights(one) - layer.weights(none)
    sizes = layer.size / layer.changes.norm(dim=1)
    for bit in range(BITS):
        expected = sizes[BITS + bit] * layer.changes[BITS + bit] - sizes[bit] * layer.changes[bit]
        torch.testing.assert_close(differences[bit], expected.view(plain.weight.shape))
    layer.chosen = chosen(messages(2))
    merged = layer.weights(layer.chosen)
    for index in range(2):
        written = torch.nn.functional.conv2d(images[index], merged[index], plain.bias, padding=1)
        torch.testing.assert_close(layer(images)[index], written)
    layer.chosen = None
    assert torch.equal(layer(images), plain(images))


def test_without_bits_the_decoder_is_what_it_was() -> None:
    vae = autoencoder()
    latents = torch.randn(2, 2, 10, 10, generator=stream(0, "z"))
    with torch.no_grad():
        before = vae.decode(latents).sample
        images = [torch.rand(1, 3, 20, 20, generator=stream(0, "i", n)) for n in range(2)]
        found = features_of(vae, lambda count: torch.cat(images[:count]), 2)
        assert found.dtype == torch.float16
        whole = vae.decode(vae.encode(torch.cat(images)).latent_dist.mean).sample
        keyed = Keyed(vae, BITS)
        # Rounded to 16 bits on the way: equal to within a few roundings of the largest number.
        torch.testing.assert_close(keyed.decode(found.float(), None), whole, atol=0.03, rtol=0)
        torch.testing.assert_close(vae.decode(latents).sample, before, atol=0.03, rtol=0)


@pytest.mark.parametrize("psnr", [20.0, 32.0])
def test_marks_have_the_psnr_that_was_asked_for_and_leave_out_the_frame(features: Tensor, psnr: float) -> None:
    keyed, bits = Keyed(autoencoder(), BITS), messages(3)
    with torch.no_grad():
        marked = keyed(features, bits, psnr)
        plain = keyed.decode(features, None)[..., FRAME:-FRAME, FRAME:-FRAME].clamp(-1, 1)
        other = keyed(features, 1 - bits, psnr)
    assert marked.shape == (3, 3, 40 - 2 * FRAME, 48 - 2 * FRAME)
    error = (marked - plain).square().mean((1, 2, 3))
    torch.testing.assert_close(10 * torch.log10(4 / error), torch.full((3,), psnr), atol=0.05, rtol=0)
    assert float((other - marked).abs().max()) > 0.01


def test_bits_that_are_not_carried_change_nothing(features: Tensor) -> None:
    keyed, bits, carried = Keyed(autoencoder(), BITS), messages(3), torch.ones(3, BITS)
    carried[:, 2] = 0
    other = bits.clone()
    other[:, 2] = 1 - other[:, 2]
    with torch.no_grad():
        assert torch.equal(keyed(features, bits, 30.0, carried), keyed(features, other, 30.0, carried))
        assert not torch.equal(keyed(features, bits, 30.0), keyed(features, other, 30.0))


def test_only_the_changes_learn(features: Tensor) -> None:
    keyed = Keyed(autoencoder(), BITS)
    keyed(features, messages(3), 20.0).square().mean().backward()
    learning = {name for name, parameter in keyed.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in keyed.named_parameters() if name.endswith(".changes")}
    assert len(learning) == 4, "both convolutions of both residual blocks"
    assert all(bool((p.grad != 0).any()) for p in keyed.parameters() if p.requires_grad and p.grad is not None)
    assert all((p.grad is not None) == p.requires_grad for p in keyed.parameters())


def test_an_extractor_learns_with_them(scenes: Shards, tmp_path: Path) -> None:
    autoencoder().save_pretrained(tmp_path / "vae")
    values = {**TINY_EXTRACTOR, "scenes": scenes.path, "bits": BITS, "batch_size": 6, "decoder": tmp_path / "vae"}
    method = TrainExtractor(ExtractorConfig.model_validate(values))
    batch = method.batch(0, stream(0, "b"))
    assert (batch["images"].shape[0], batch["features"].shape[0], len(batch["bits"])) == (3, 3, 6)
    assert batch["features"].shape[-1] == 32 + 2 * FRAME
    loss, metrics = method(batch, stream(0, "f"))
    loss.backward()
    assert "accuracy_keyed" in metrics
    grouped = {id(p): p.grad for group in method.param_groups() for p in group.params}
    trained = [p for p in method.parameters() if p.requires_grad]
    assert set(grouped) == {id(p) for p in trained}
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    found = method.evaluate(stream(0, "e"))
    assert {f"keyed_{name}" for name in views(torch.zeros(1, 3, 40, 40))} <= set(found)
