"""Distortions: repeatable, within range, differentiable, and as strong as their settings say."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageEnhance
from pydantic import ValidationError
from torch.nn import functional as F

from lrdiff.errors import ShapeError
from lrdiff.images import to_image, to_tensor
from lrdiff.rng import stream
from lrdiff.watermark import distortions
from lrdiff.watermark.distortion_config import DistortionConfig
from lrdiff.watermark.distortions import Distortions

NOTHING = dict.fromkeys(
    ("clean", "crop", "resize", "flip", "upside_down", "rotate", "jpeg", "blur", "noise", "colour", "erase"), 0.0
)
ALONE = [name for name in NOTHING if name != "clean"]


def smooth(count: int = 2, height: int = 48, width: int = 48) -> torch.Tensor:
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(-0.95, 0.95)


def only(**shares: object) -> Distortions:
    return Distortions(DistortionConfig.model_validate({**NOTHING, **shares}))


def test_the_same_generator_gives_the_same_images() -> None:
    images, chain = smooth(), Distortions()
    first, again, other = (chain(images, stream(3, "d", n)) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Distortions()(smooth(), stream(0, "d"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ALONE)
def test_each_changes_images_within_range_and_passes_the_gradient(name: str) -> None:
    images = smooth().requires_grad_()
    out = only(**{name: 1.0})(images, stream(0, "alone"))
    assert out.shape[:2] == images.shape[:2]
    assert float(out.detach().abs().max()) <= 1.0
    assert out.shape != images.shape or not torch.allclose(out, images, atol=1e-3)
    out.square().sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert float(images.grad.abs().mean()) > 0


def test_combinations_pass_finite_gradients() -> None:
    shares = dict.fromkeys(ALONE, 1.0)
    for number in range(5):
        images = smooth(3, 60, 44).requires_grad_()
        only(**shares)(images, stream(1, "all", number)).sum().backward()
        assert images.grad is not None
        assert bool(images.grad.isfinite().all())
        assert float(images.grad.abs().mean()) > 0


def test_half_precision_around_it_changes_nothing() -> None:
    """Places of turned pixels in 8 bits are off by up to half a pixel, as far from the truth as a mark is faint."""
    images, chain = smooth(), only(rotate=1.0, colour=1.0, blur=1.0)
    exact = chain(images, stream(0, "d"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chain(images, stream(0, "d")), exact)


def test_nothing_happens_without_strength_or_shares() -> None:
    images = smooth()
    assert torch.equal(Distortions()(images, stream(0, "d"), strength=0.0), images)
    torch.testing.assert_close(only()(images, stream(0, "d")), images)
    assert torch.equal(only(clean=1.0, crop=1.0)(images, stream(0, "d")), images)


def test_strength_scales_how_far_things_go() -> None:
    images, chain = smooth(8), only(noise=1.0, noise_std=0.2)
    # Half the strength is half of the images, and half of the noise.
    errors = [float((chain(images, stream(0, "n"), strength=s) - images).abs().mean()) for s in (0.3, 0.6, 1.0)]
    assert errors[0] < errors[1] < errors[2]


def test_crop_and_resize_are_parts_of_the_area_down_to_the_smallest_side() -> None:
    images = smooth(2, 100, 200)
    assert only(crop=1.0, crop_area=(0.25, 0.25))(images, stream(0, "c")).shape == (2, 3, 50, 100)
    assert only(resize=1.0, resize_area=(0.25, 0.25))(images, stream(0, "c")).shape == (2, 3, 50, 100)
    assert only(crop=1.0, crop_area=(0.01, 0.01), min_side=40)(images, stream(0, "c")).shape == (2, 3, 40, 40)
    assert only(crop=1.0, crop_area=(0.5, 0.5), min_side=400)(images, stream(0, "c")).shape == (2, 3, 100, 200)


def test_crops_are_cut_out_unchanged() -> None:
    images = smooth(1)
    out = only(crop=1.0, crop_area=(0.5, 0.5))(images, stream(4, "c"))
    windows = images.unfold(2, out.shape[2], 1).unfold(3, out.shape[3], 1)
    distance = (windows - out[:, :, None, None]).abs().amax((1, 4, 5))
    assert float(distance.min()) < 1e-6


def test_a_quarter_turn_is_exact_on_a_square() -> None:
    images = (smooth(2, 32, 32) + 1) / 2
    turned = distortions.rotate(images, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(-1, (1, 2)), atol=1e-4, rtol=0)


def test_a_small_turn_agrees_with_pillow() -> None:
    images = smooth(1, 64, 64)
    ours = distortions.rotate((images + 1) / 2, torch.tensor([25.0]))[0] * 2 - 1
    theirs = to_tensor(to_image(images[0]).rotate(25, Image.Resampling.BILINEAR))
    assert float((ours - theirs)[:, 16:48, 16:48].abs().max()) < 0.02


@pytest.mark.parametrize(
    ("enhance", "neutral"),
    [
        (ImageEnhance.Brightness, lambda x: torch.zeros_like(x)),
        (ImageEnhance.Color, distortions._grey),
        (ImageEnhance.Contrast, lambda x: distortions._grey(x).mean((2, 3), keepdim=True)),
        (ImageEnhance.Sharpness, distortions._smooth),
    ],
)
def test_factors_mean_what_pillow_means(enhance: type, neutral: object) -> None:
    picture = to_image(smooth(1)[0])
    pixels = (to_tensor(picture)[None] + 1) / 2
    ours = distortions.adjust(pixels, neutral(pixels), 1.5)[0]  # pyright: ignore[reportCallIssue]
    theirs = (to_tensor(enhance(picture).enhance(1.5)) + 1) / 2
    assert float((ours - theirs)[:, 2:-2, 2:-2].abs().max()) < 0.012


def test_hue_keeps_brightness_and_grey() -> None:
    pixels = 0.5 + 0.1 * smooth(2)
    turned = distortions.turn_hue(pixels, torch.tensor([30.0, -20.0]))
    torch.testing.assert_close(distortions._grey(turned), distortions._grey(pixels), atol=2e-3, rtol=0)
    assert not torch.allclose(turned, pixels, atol=1e-2)
    grey = pixels[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(distortions.turn_hue(grey, torch.tensor([40.0, 90.0])), grey, atol=2e-3, rtol=0)


def test_blur_of_zero_keeps_an_image_and_more_removes_more() -> None:
    pixels = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    soft = distortions.blur(pixels, torch.tensor([0.0, 0.7, 2.0]))
    torch.testing.assert_close(soft[0], pixels[0])
    spread = soft.std((1, 2, 3))
    assert spread[0] > spread[1] > spread[2]
    assert distortions.blur(pixels[:, :, :2, :2], torch.tensor([9.0, 9.0, 9.0])).isfinite().all()


def test_erasing_paints_one_rectangle_of_the_wanted_area() -> None:
    images = smooth(4)
    out = only(erase=1.0, erase_area=(0.2, 0.2))(images, stream(0, "e"))
    changed = ((out - images).abs().amax(1) > 1e-5).float().mean((1, 2))
    assert bool(((changed > 0.12) & (changed < 0.25)).all())


def test_bad_input_is_refused() -> None:
    chain = Distortions()
    with pytest.raises(ShapeError, match="images"):
        chain(torch.zeros(3, 8, 8), stream(0, "d"))
    with pytest.raises(ShapeError, match="strength"):
        chain(smooth(), stream(0, "d"), strength=1.5)
    for wrong in ({"crop_area": (0.9, 0.1)}, {"crop_area": (0.5, 1.5)}, {"jpeg": 1.1}, {"jpeg_quality": (0.0, 50.0)}):
        with pytest.raises(ValidationError):
            DistortionConfig.model_validate(wrong)
