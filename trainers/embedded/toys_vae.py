"""Training of the autoencoder of `toys`: 128 px images to 16 x 16 x 8 latents and back.

It learns on 64 px crops, half of them dead-leaves pictures and half scenes of the toy world, so that scenes and
photographs both survive it. Two things make its latents easy for a diffusion model:

- a part of the batches is decoded from latents that were scaled down by a half and compared with the scaled image,
  which keeps the latents smooth and free of positional codes (Kouzelis et al., "EQ-VAE", arXiv 2502.09509);
- after training each latent channel is shifted and scaled to mean 0 and standard deviation 1 by folding the affine map
  into the two 1 x 1 convolutions at the bottleneck, so `scaling_factor` is 1 and all channels carry the same noise.

Then a second training goes on from the finished autoencoder with its encoder as it is: only the decoder learns, which
costs less, and latents keep their meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge, Le, MinLen
from diffusers import AutoencoderKL
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.errors import ConfigError
from trainers.config import Settings
from trainers.embedded.dead_leaves import dead_leaves
from trainers.embedded.linear_start import linear_start
from trainers.embedded.shards import Shards
from trainers.method import Batch, Method, Metrics, ParamGroup


class ToysVaeConfig(Settings):
    """How the autoencoder is built and trained."""

    start: Path | None = None
    """Folder of a finished autoencoder of the same channels. Only its decoder is trained; none starts from scratch."""

    channels: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (32, 48, 64, 128)
    """Width of each level; every level but the last halves the resolution."""

    latent_channels: PositiveInt = 8
    """Numbers per latent position."""

    batch_size: PositiveInt = 16
    """Crops per step."""

    crop: PositiveInt = 64
    """Side of a crop in pixels."""

    scenes: Path | None = None
    """Folder of rendered scenes; none trains on dead-leaves pictures alone."""

    scene_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.6
    """Share of each batch that comes from the scenes, when there are any."""

    kl: NonNegativeFloat = 3e-4
    """Weight of the Kullback-Leibler term, per latent number."""

    square: NonNegativeFloat = 2.0
    """Weight of the squared error, which is what the PSNR measures."""

    pixel: NonNegativeFloat = 0.1
    """Weight of the absolute error."""

    edges: NonNegativeFloat = 0.1
    """Weight of the absolute error of the image's gradients."""

    half_scale: Annotated[float, Ge(0.0), Le(1.0)] = 0.25
    """Share of the steps that decode latents scaled down by a half."""


def build_vae(channels: tuple[int, ...], latent_channels: int, sample_size: int) -> AutoencoderKL:
    """Return a fresh autoencoder in diffusers' own class, without attention, fast on a CPU."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=cast(Any, channels),
        layers_per_block=1,
        down_block_types=cast(Any, ("DownEncoderBlock2D",) * len(channels)),
        up_block_types=cast(Any, ("UpDecoderBlock2D",) * len(channels)),
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=sample_size,
        scaling_factor=1.0,
    )
    linear_start(vae)
    return vae


class ToysVae(Method[ToysVaeConfig]):
    """Reconstruction with squared, absolute, gradient and Kullback-Leibler terms."""

    def __init__(self, config: ToysVaeConfig) -> None:
        super().__init__(config)
        if config.start is None:
            self.vae = build_vae(config.channels, config.latent_channels, 128)
        else:
            self.vae = cast(AutoencoderKL, AutoencoderKL.from_pretrained(config.start, torch_dtype=torch.float32))
            made: Any = self.vae.config
            found = (tuple(made.block_out_channels), made.latent_channels)
            if found != (config.channels, config.latent_channels):
                raise ConfigError(f"{config.start}: has channels {found}, not those of the settings; set these alike")
            for part in (self.vae.encoder, self.vae.quant_conv):
                cast(nn.Module, part).requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.scenes = Shards.open(config.scenes) if config.scenes is not None else None

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw crops of scenes and dead-leaves pictures."""
        size = self.config.batch_size
        from_scenes = round(size * self.config.scene_share) if self.scenes is not None else 0
        parts = [dead_leaves(size - from_scenes, self.config.crop, rng)] if from_scenes < size else []
        if self.scenes is not None and from_scenes:
            parts.append(_crops(self.scenes, from_scenes, self.config.crop, rng))
        return {"images": torch.cat(parts)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Encode, sample, decode, compare."""
        images: Tensor = batch["images"].contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(images)).chunk(2, dim=1)  # pyright: ignore[reportOptionalCall]
        log_variance = log_variance.clamp(-20.0, 10.0)
        noise = torch.randn(mean.shape, generator=rng).to(mean.device)
        latents = mean + (0.5 * log_variance).exp() * noise
        if float(torch.rand((), generator=rng)) < self.config.half_scale:
            latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
        decoded = self.vae.decoder(self.vae.post_quant_conv(latents))  # pyright: ignore[reportOptionalCall]
        error = decoded - images
        square, pixel = error.square().mean(), error.abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        weights = self.config
        loss = weights.square * square + weights.pixel * pixel + weights.edges * edges + weights.kl * kl
        psnr = 10.0 * torch.log10(4.0 / square.detach())
        return loss, {"pixel": pixel, "edges": edges, "kl": kl, "psnr": psnr}

    def param_groups(self) -> Iterable[ParamGroup]:
        """All that is trained, inner convolutions with orthogonalised steps."""
        edges = ("conv_in", "conv_out", "quant_conv")
        named = [(name, p) for name, p in self.vae.named_parameters() if p.requires_grad]
        inner = [p for name, p in named if p.ndim == 4 and not any(edge in name for edge in edges)]
        chosen = {id(p) for p in inner}
        outer = [p for _, p in named if id(p) not in chosen]
        return [ParamGroup("inner convolutions", inner, orthogonal=True), ParamGroup("edges and vectors", outer)]

    def artifact(self) -> None:
        """Nothing: `make` writes the folder in diffusers' layout."""

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the PSNR of whole held-out scenes, decoded from the posterior's mean."""
        if self.scenes is None:
            return {}
        held_out = self.scenes.images(torch.arange(self.scenes.count - 32, self.scenes.count))
        return {"psnr_scenes": psnr(held_out, reconstruct(self.vae, held_out))}


def _crops(scenes: Shards, count: int, size: int, rng: torch.Generator) -> Tensor:
    """Cut random squares out of random scenes, never of the last 32, some from the scene at half size; mirror half."""
    chosen = torch.randint(0, scenes.count - 32, (count,), generator=rng)
    images = scenes.images(chosen)
    crops = []
    for image in images:
        if image.shape[-1] >= 2 * size and float(torch.rand((), generator=rng)) < 0.2:
            image = F.avg_pool2d(image, 2)
        top, left = (int(torch.randint(0, n - size + 1, (), generator=rng)) for n in image.shape[-2:])
        crop = image[:, top : top + size, left : left + size]
        crops.append(crop.flip(-1) if float(torch.rand((), generator=rng)) < 0.5 else crop)
    return torch.stack(crops)


def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode to the posterior's mean and decode. Images [B, 3, H, W] in [-1, 1], and so is the result, on the CPU."""
    parameter = next(vae.parameters())
    with torch.no_grad():
        decoded = [vae.decode(vae.encode(part.to(parameter)).latent_dist.mean).sample for part in images.split(8)]  # pyright: ignore
    return torch.cat(decoded).float().cpu().clamp(-1.0, 1.0)


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the mean over images of the peak signal-to-noise ratio in dB, for a range of [-1, 1]."""
    error = (first - second).square().flatten(1).mean(1)
    return float((10.0 * torch.log10(4.0 / error.clamp_min(1e-12))).mean())


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Fold z -> (z - mean) / std into `quant_conv` and its inverse into `post_quant_conv`, in place and exactly.

    Args:
        vae: The autoencoder; what it reconstructs does not change.
        mean: Mean of each latent channel, [C].
        std: Standard deviation of each latent channel, [C], positive.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None
    assert before.bias is not None
    assert after is not None
    assert after.bias is not None
    channels = mean.numel()
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2.0 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
