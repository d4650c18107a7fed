"""Attacks with more than a picture, on a tiny autoencoder and a tiny extractor."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.images import to_image, to_tensor
from lrdiff.watermark import model_attacks
from lrdiff.watermark.attack_report import psnr, read_matches
from lrdiff.watermark.extractor import Extractor
from tests.lrdiff.watermark.conftest import pictures

KEY, OTHER = "01" * 12, "0011" * 6


@pytest.fixture(scope="module")
def vae(tiny_model_dir: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(tiny_model_dir / "vae").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def marked(vae: AutoencoderKL) -> AutoencoderKL:
    """An autoencoder whose decoder draws differently."""
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.3
    return other


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [to_image(image) for image in pictures(5, 21, side=32)]


def arrays(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int64) for image in images])


def test_re_encoding_counts_passes(vae: AutoencoderKL, images: list[Image.Image]) -> None:
    attack = model_attacks.reencode(vae)
    once, twice = attack(images, 1), attack(images, 2)
    assert (arrays(attack(once, 1)) == arrays(twice)).all()
    expected = vae.decode(vae.encode(to_tensor(images[0])[None]).latent_dist.mode()).sample[0]
    assert (
        np.abs(arrays(once)[0] - np.asarray(to_image(expected), dtype=np.int64)).max() <= 1
    )  # batches round otherwise
    assert not (arrays(once) == arrays(images)).all()


def test_swapping_forgets_the_marked_decoder(
    vae: AutoencoderKL, marked: AutoencoderKL, images: list[Image.Image]
) -> None:
    assert (arrays(model_attacks.swap(vae)(images, 1)) == arrays(model_attacks.reencode(vae)(images, 1))).all()
    overwritten = model_attacks.overwrite(vae, marked)(images, 1)
    assert (arrays(overwritten) == arrays(model_attacks.through(vae, marked, images))).all()
    assert arrays(overwritten).mean() > arrays(model_attacks.swap(vae)(images, 1)).mean() + 10


def test_the_holder_of_the_extractor_writes_any_key_within_its_levels(
    extractor: Extractor, images: list[Image.Image]
) -> None:
    attack = model_attacks.overwrite_pixels(extractor, OTHER)
    for level in (2, 8):
        changed = attack(images, level)
        assert np.abs(arrays(changed) - arrays(images)).max() <= level
    # Pictures of one key before, of the other one after.
    before = model_attacks.overwrite_pixels(extractor, KEY)(images, 60)
    after = attack(before, 60)
    assert min(read_matches(extractor, before, KEY)) >= 21
    assert min(read_matches(extractor, after, OTHER)) >= 20
    assert np.mean(read_matches(extractor, after, KEY)) < 16
    with pytest.raises(ConfigError, match="the other key has 3 bits"):
        model_attacks.overwrite_pixels(extractor, "011")


def test_averaging_finds_a_mark_that_is_the_same_in_all_pictures() -> None:
    rng = np.random.default_rng(0)
    mark = rng.choice([-4.0, 4.0], size=(48, 48, 3))
    smooth = [np.asarray(to_image(image)) for image in pictures(60, 5, side=48)]
    smooth = [image * 0.5 + 60 for image in smooth]
    images = [Image.fromarray((image + mark).round().astype(np.uint8)) for image in smooth]

    def left(changed: list[Image.Image]) -> float:
        """Return the share of the mark that is still in the pictures' mean."""
        difference = arrays(changed).mean(0) - np.stack(smooth).mean(0)
        return float((difference * mark).mean() / 16)

    few, many = (model_attacks.average()(images, count) for count in (2, 60))
    assert left(images) == pytest.approx(1.0, abs=0.05)
    assert abs(left(many)) < 0.25
    # What was subtracted is the mark, and more so the more pictures were averaged.
    taken = [(arrays(images)[0] - arrays(changed)[0]).ravel() for changed in (few, many)]
    alike = [np.corrcoef(part, mark.ravel())[0, 1] for part in taken]
    assert alike[1] > alike[0]
    assert alike[1] > 0.8
    with pytest.raises(ConfigError, match="there are 60"):
        model_attacks.average()(images, 100)


def test_fine_tuning_goes_from_the_marked_decoder_towards_the_clean_one(
    vae: AutoencoderKL, marked: AutoencoderKL, images: list[Image.Image]
) -> None:
    weights = {name: value.clone() for name, value in marked.state_dict().items()}
    # Clean pictures that the clean decoder draws exactly, so that learning them is learning that decoder.
    clean = torch.stack([to_tensor(image) for image in model_attacks.reencode(vae)(images, 1)])
    attack = model_attacks.fine_tune(vae, marked, clean, steps=(0, 5, 80), lr=3e-3)
    start, some, many = (attack(images, steps) for steps in attack.strengths)
    assert (arrays(start) == arrays(model_attacks.through(vae, marked, images))).all()
    target = model_attacks.swap(vae)(images, 1)
    distances = [psnr(target, changed) or 99.0 for changed in (start, some, many)]
    assert distances[2] > distances[0] + 1
    # In one go or in two, and again from the beginning: the same.
    assert (arrays(model_attacks.fine_tune(vae, marked, clean, lr=3e-3)(images, 80)) == arrays(many)).all()
    assert (arrays(attack(images, 5)) == arrays(some)).all()
    assert all(bool((value == weights[name]).all()) for name, value in marked.state_dict().items())
    assert not any(parameter.requires_grad for parameter in marked.parameters())


def test_sizes_that_do_not_fit_are_named(vae: AutoencoderKL, images: list[Image.Image]) -> None:
    with pytest.raises(ShapeError, match="pictures of one size"):
        model_attacks.reencode(vae)([images[0], images[1].crop((0, 0, 16, 16))], 1)
    with pytest.raises(ShapeError, match="give pictures as the model made them"):
        model_attacks.reencode(vae)([image.crop((0, 0, 31, 31)) for image in images], 1)


def test_autoencoders_without_a_distribution_are_read_too() -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny: nn.Module = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    latents = model_attacks.encode(tiny, torch.zeros(1, 3, 16, 16))
    assert latents.shape == (1, 4, 8, 8)
    assert model_attacks.rendered(tiny, latents)[0].size == (16, 16)
