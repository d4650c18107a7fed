"""JPEG with a gradient: the file is real, and its gradient points to what the file keeps."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lrdiff.alignprop.rewards import CHROMINANCE, LUMINANCE
from lrdiff.dct import YCBCR
from lrdiff.watermark.jpeg import jpeg
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes


def scenes(count: int) -> torch.Tensor:
    return (render(sample_scenes(3, range(count))).images + 1) / 2


def waves(columns: int) -> torch.Tensor:
    """Grey stripes of a period of 16 / columns pixels: one horizontal coefficient of every block."""
    place = torch.arange(16.0)
    stripes = torch.cos(torch.pi * (2 * (place % 8) + 1) * columns / 16)
    return stripes.expand(1, 3, 16, 16)


def gradient(images: torch.Tensor, quality: float, change: torch.Tensor, subsampling: int = 2) -> float:
    """Of the change that is kept, as a share of the change."""
    images = images.clone().requires_grad_()
    (jpeg(images, torch.full((len(images),), quality), subsampling) * change).sum().backward()
    assert images.grad is not None
    return float((images.grad * change).sum() / change.square().sum())


@pytest.mark.parametrize(("quality", "subsampling", "size"), [(50.0, 2, 48), (80.0, 0, 48), (37.4, 2, 45)])
def test_the_file_is_real(quality: float, subsampling: int, size: int) -> None:
    images = scenes(2)[..., :size, : size + 2]
    found = jpeg(images.requires_grad_(), torch.full((2,), quality), subsampling).detach()
    for image, saved in zip(images.detach(), found, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=round(quality), subsampling=subsampling)
        read = np.asarray(Image.open(buffer), dtype=np.float32)
        np.testing.assert_allclose(saved.permute(1, 2, 0).numpy() * 255, read, atol=1e-3)


def test_every_image_has_its_own_quality_and_without_gradient_only_the_file_is_made() -> None:
    images = scenes(2)
    strong, weak = jpeg(images, torch.tensor([10.0, 95.0]))
    assert float((strong - images[0]).abs().mean()) > 2 * float((weak - images[1]).abs().mean()) > 0
    assert not jpeg(images, torch.tensor([10.0, 95.0])).requires_grad


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_coefficient_passes_twice_its_steps_and_at_most_all(subsampling: int) -> None:
    # A stripe of amplitude a has the coefficient a * 255 * 4 * sqrt(2) in column `columns` of the first row.
    for columns, steps in ((1, 0.1), (3, 0.35), (6, 0.2), (5, 0.8)):
        amplitude = steps * LUMINANCE[0][columns] / (255 * 4 * 2**0.5)
        share = gradient(0.5 + amplitude * waves(columns), 50.0, waves(columns), subsampling)
        assert share == pytest.approx(min(1.0, 2 * steps), rel=0.02)


def test_the_mean_passes_unless_it_is_grey_and_colours_have_their_own_table() -> None:
    bright = torch.full((1, 3, 16, 16), 0.9)
    assert gradient(bright, 50.0, torch.ones(1, 3, 16, 16)) == pytest.approx(1.0, abs=1e-4)
    red = torch.linalg.inv(torch.tensor(YCBCR))[:, 2].view(1, 3, 1, 1).expand(1, 3, 16, 16)  # changes Cr alone
    steps = 0.3
    amount = steps * CHROMINANCE[0][0] / (255 * 8)
    assert gradient(0.5 + amount * red, 50.0, red) == pytest.approx(2 * steps, rel=0.02)


def test_the_gradient_tells_more_of_what_is_kept_than_a_straight_one() -> None:
    images, rng = scenes(4), torch.Generator().manual_seed(0)
    quality = torch.full((4,), 50.0)
    change = 0.02 * torch.randn(images.shape, generator=rng)
    kept = jpeg(images + change, quality) - jpeg(images, quality)
    told = torch.autograd.functional.jvp(lambda x: jpeg(x, quality), images, change)[1]
    correlation = [float(F.cosine_similarity(kept.flatten(), guess.flatten(), dim=0)) for guess in (told, change)]
    assert correlation[0] > 1.5 * correlation[1] > 0
