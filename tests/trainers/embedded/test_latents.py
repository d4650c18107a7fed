"""The autoencoder's start, the exact normalisation of its latents, and the cache of latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional as F

from lrdiff.rng import stream
from trainers.embedded.dead_leaves import dead_leaves
from trainers.embedded.latents import encode, moments
from trainers.embedded.linear_start import linear_start
from trainers.embedded.shards import Shards
from trainers.embedded.toys_vae import build_vae, normalise_latents, psnr, reconstruct


def fresh_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_vae((16, 16, 24, 32), 4, 64)


@pytest.mark.parametrize(("branches", "least"), [(False, 0.99), (True, 0.8)])
def test_untrained_autoencoder_interpolates_block_means(branches: bool, least: float) -> None:
    images = dead_leaves(4, 64, stream(0, "leaves"))
    tent = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
    expected = F.avg_pool2d(images, 8)
    for _ in range(3):
        expected = F.interpolate(expected, scale_factor=2, mode="nearest")
        expected = F.conv2d(expected, tent.expand(3, 1, 3, 3), padding=1, groups=3)
    torch.manual_seed(0)
    vae = build_vae((32, 48, 64, 128), 8, 64)
    for module in vae.modules():
        # Without the random features of the residual branches only the linear autoencoder is left.
        if isinstance(module, ResnetBlock2D) and not branches:
            torch.nn.init.zeros_(module.conv2.weight)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    pair = torch.stack([reconstruct(vae, images)[inner].flatten(), expected[inner].flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > least


def test_linear_start_refuses_groups() -> None:
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=4, sample_size=16)
    with pytest.raises(ValueError, match="norm_num_groups"):
        linear_start(vae)


def test_normalised_latents_have_unit_moments_and_the_same_reconstruction(scenes: Shards) -> None:
    vae = fresh_vae()
    images = scenes.images(torch.arange(4))
    before = reconstruct(vae, images)
    log_variance = vae.encode(images).latent_dist.logvar.detach()  # pyright: ignore
    mean, std = moments(vae, scenes, 36)
    normalise_latents(vae, mean, std)
    assert torch.allclose(reconstruct(vae, images), before, atol=1e-4)
    new_mean, new_std = moments(vae, scenes, 36)
    assert torch.allclose(new_mean, torch.zeros(4), atol=1e-4)
    assert torch.allclose(new_std, torch.ones(4), atol=1e-4)
    after = vae.encode(images).latent_dist.logvar.detach()  # pyright: ignore
    assert torch.allclose(after, log_variance - 2 * std.log()[:, None, None], atol=1e-4)


def test_latents_hold_mirror_images_with_sides_exchanged(scenes: Shards, latents: Path) -> None:
    stored = np.load(latents / "latents.npy")
    records = [json.loads(line) for line in (latents / "scenes.jsonl").read_text().splitlines()]
    count = scenes.count
    assert stored.shape == (2 * count, 4, 16, 16)
    assert stored.dtype == np.float16
    assert len(records) == 2 * count
    swap = {"left of": "right of", "right of": "left of", "in front of": "in front of", "behind": "behind"}
    for record, mirrored in zip(records[:count], records[count:], strict=True):
        assert mirrored["relations"] == [swap[name] for name in record["relations"]]
        assert mirrored["objects"] == record["objects"]
    assert {name for record in records for name in record["relations"]} >= {"left of", "right of"}
    torch.manual_seed(0)
    vae = build_vae((8, 8, 8, 16), 4, 128)
    flipped = encode(vae, scenes.images(torch.tensor([7])).flip(-1))
    assert torch.allclose(torch.from_numpy(stored[count + 7]).float(), flipped[0].detach(), atol=2e-3)


def test_psnr_of_a_known_error() -> None:
    zeros = torch.zeros(2, 3, 8, 8)
    assert psnr(zeros, zeros + 0.2) == pytest.approx(20.0, abs=1e-4)
