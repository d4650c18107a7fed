"""Rewards: what they measure, on pictures where the answer is known, and that their gradient is right."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lrdiff.alignprop import rewards
from lrdiff.alignprop.specs import MEASURED
from lrdiff.errors import ShapeError
from lrdiff.rng import stream
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes


def flat(*colour: float) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 16, 24).clone()


def noise(count: int = 2, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=stream(0, "n"), dtype=torch.float64)


def jpeg_bytes(image: Tensor) -> int:
    pixels = (255 * image.permute(1, 2, 0)).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=95)
    return buffer.tell()


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def test_jpeg_bits_order_pictures_as_jpeg_does() -> None:
    """Bar: 0.97 rank correlation with real sizes."""
    world = (render(sample_scenes(0, range(32)), 128).images + 1) / 2
    blurred = [F.avg_pool2d(world[n : n + 1], 2**k).repeat_interleave(2**k, 2).repeat_interleave(2**k, 3)
               for n, k in ((0, 1), (1, 2), (2, 3))]  # fmt: skip
    grain = (world[:8] + 0.1 * torch.randn(world[:8].shape, generator=stream(0, "g"))).clamp(0, 1)
    images = torch.cat([world, *blurred, grain])
    real = torch.tensor([float(jpeg_bytes(image)) for image in images])
    ours = rewards.jpeg_bits(images)
    # The untouched scenes alone as well: blur and grain widen the range and make the order easy.
    for part in (slice(0, len(world)), slice(None)):
        assert float(torch.corrcoef(torch.stack([ranks(real[part]), ranks(ours[part])]))[0, 1]) >= 0.97
    torch.testing.assert_close(rewards.compressibility(images), -rewards.incompressibility(images))


def test_a_flat_picture_costs_its_mean_alone() -> None:
    """Grey 0.5 has one coefficient per block, 8 x 127.5 in steps of 2 (16 x 10 % rounded): at quality 95."""
    expected = torch.log2(torch.tensor(1 + 8 * 127.5 / 2)) / 64
    torch.testing.assert_close(rewards.jpeg_bits(flat(0.5, 0.5, 0.5)), expected[None], atol=1e-4, rtol=1e-4)


def test_each_reward_measures_what_it_says() -> None:
    torch.testing.assert_close(rewards.brightness(flat(1.0, 0.0, 0.0)), torch.tensor([0.299]))
    half = flat(0.0, 0.0, 0.0)
    half[..., 12:] = 1.0
    torch.testing.assert_close(rewards.contrast(half), torch.tensor([0.5]), atol=1e-4, rtol=0)
    assert float(rewards.colourfulness(flat(0.3, 0.3, 0.3))) < 1e-3
    # rg = 1, yb = 0.5 everywhere: no spread, mean of length sqrt(1.25)
    torch.testing.assert_close(
        rewards.colourfulness(flat(1.0, 0.0, 0.0)), torch.tensor([0.3 * 1.25**0.5]), atol=1e-3, rtol=0
    )
    assert float(rewards.sharpness(flat(0.5, 0.2, 0.1))) < 1e-10
    assert bool((rewards.sharpness(noise()) > rewards.sharpness(F.avg_pool2d(noise(), 3, 1, 1))).all())
    assert float(rewards.symmetry(half)) == -1.0
    assert float(rewards.symmetry(torch.cat([half, half.flip(-1)], dim=-1))) == 0.0
    assert float(rewards.likeness(flat(0.5, 0.5, 0.5)[0])(flat(0.5, 0.5, 1.0))) == pytest.approx(-0.25 / 3)
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(rewards.palette(colours)(flat(0.9, 0.0, 0.0))) == pytest.approx(-0.1, abs=1e-5)


ALL = {
    **{name: reward for name, reward in rewards.SIMPLE.items() if name not in MEASURED},
    "likeness": rewards.likeness(torch.zeros(3, 8, 8)),
    "palette": rewards.palette(torch.eye(3)),
}


def test_the_real_file_is_measured_without_gradient() -> None:
    images = noise(3, 24).requires_grad_()
    found = rewards.jpeg(images)
    assert not found.requires_grad
    assert (-found * 24 * 24 / 8).tolist() == pytest.approx([jpeg_bytes(image) for image in images.detach()])


@pytest.mark.parametrize("name", ALL)
def test_scores_are_one_for_each_image_and_their_gradient_is_exact(name: str) -> None:
    images = noise().requires_grad_()
    scores = ALL[name](images)
    assert scores.shape == (2,)
    torch.testing.assert_close(ALL[name](images[:1]), scores[:1])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert all(float(part.abs().sum()) > 0 for part in gradient)
    direction = torch.randn(images.shape, generator=stream(1, "d"), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (ALL[name](images + h * direction).sum() for h in (1e-6, -1e-6))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_other_shapes_are_refused(name: str) -> None:
    for shape in ((3, 16, 16), (2, 1, 16, 16), (0, 3, 16, 16)):
        with pytest.raises(ShapeError, match="images"):
            ALL[name](torch.zeros(shape))


def test_jpeg_bits_say_what_they_take() -> None:
    with pytest.raises(ShapeError, match="divisible by 8"):
        rewards.jpeg_bits(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ShapeError, match="1 to 100"):
        rewards.jpeg_bits(flat(0, 0, 0), quality=0)
