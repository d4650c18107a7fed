"""`Denoise`: fine-tune an adapter on images by the denoising loss of the base model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.inject import inject, state
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS
from trainers.config import RunConfig
from trainers.data import Sample, epoch_indices, find_samples, load_pixels
from trainers.denoise.config import DenoiseSettings
from trainers.engine import Engine
from trainers.method import Batch, Method, Metrics, ParamGroup

log = logging.getLogger(__name__)

ADAPTER = "default"
TRANSFORM = ".tensor_lora_transform."  # in the names of a tensor-lora transform's parameters
EVALUATION_LEVELS = 8
"""Timesteps at which the fixed evaluation measures, evenly spread over the schedule."""


class Denoise(Method[RunConfig[DenoiseSettings]]):
    """Loss: `E || target - network(x_t, t, caption) ||^2`, over timesteps t drawn uniformly.

    Latents are cached as mean and standard deviation of the autoencoder's posterior and sampled anew at every step.
    Captions are encoded once; the text encoder is then released.
    """

    def __init__(self, config: RunConfig[DenoiseSettings], name: str, engine: Engine) -> None:
        """Load the base model, read and encode the images, insert the adapter.

        Args:
            config: The whole run configuration.
            name: Registry name of the method, for the artifact's header.
            engine: Says device and number format.

        Raises:
            LrdiffError: The model, an image or a caption cannot be used, or no layer matches.
        """
        super().__init__(config)
        self.name = name
        self.backbone = backbones.load(config.model, device=engine.device, dtype=engine.dtype)
        self.samples = find_samples(config.data.images, config.data.prompt)
        if len(self.samples) == 1:
            log.warning("only one training image: the subject will be copied with its background and pose")
        self.latents = self._encode(self.samples)
        held_out = config.data.validation
        self.held_out = find_samples(held_out, config.data.prompt, "data.validation") if held_out else []
        self.held_out_latents = self._encode(self.held_out) if self.held_out else self.latents[:0]
        self.preview_prompts = config.watch.preview_prompts or (self.samples[0].caption,)
        self.conditions = self._condition()
        self.backbone.release_encoders()
        layers = self.backbone.target_layers(config.method.targets)
        self.peft_config = config.method.peft(layers)
        self.denoiser = self.backbone.denoiser
        self.report = inject(self.denoiser, self.peft_config, ADAPTER)

    def describe(self) -> list[str]:
        """Return the preflight in words: what is trained, on which layers, with which images."""
        captions = sorted({sample.caption for sample in self.samples})
        shown = "; ".join(repr(text) for text in captions[:3]) + (" ..." if len(captions) > 3 else "")
        base = sum(p.numel() for p in self.denoiser.parameters()) - self.report.parameters
        return [
            f"base model {self.backbone.name}: {base:,} parameters, all frozen",
            f"{self.name}: {self.report.parameters:,} parameters on {len(self.report.targets)} layers, "
            f"{self.report.targets[0]} ... {self.report.targets[-1]}",
            f"{len(self.samples)} images at {self.backbone.resolution} px, captions {shown}",
            f"{len(self.held_out)} images held out for validation",
        ]

    def _encode(self, samples: Sequence[Sample]) -> Tensor:
        """Return posterior mean and standard deviation of every image, stacked: [N, 2, C, H, W] on the CPU."""
        pixels = load_pixels(samples, self.backbone.resolution)
        flipped = [pixels.flip(-1)] if self.config.data.flip else []
        moments = []
        with torch.no_grad():
            for images in torch.cat([pixels, *flipped]).split(8):
                mean, std = self.backbone.encode_moments(images.to(self.backbone.device, self.backbone.dtype))
                moments.append(torch.stack([mean, std], dim=1).float().cpu())
        return torch.cat(moments)

    def _condition(self) -> dict[str, dict[str, Tensor]]:
        """Encode every text the run will need, once."""
        texts = {sample.caption for sample in [*self.samples, *self.held_out]} | set(self.preview_prompts) | {""}
        with torch.no_grad():
            return {text: {k: v.cpu() for k, v in self.backbone.condition([text]).items()} for text in sorted(texts)}

    def _conditions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stack cached conditions of texts along the batch axis."""
        found = [self.conditions[text] for text in texts]
        return {key: torch.cat([item[key] for item in found]) for key in found[0]}

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return moments [B, 2, C, H, W] and conditions of micro-batch `index`; every epoch is a new permutation."""
        count = len(self.latents)
        chosen = epoch_indices(index, self.config.data.batch_size, count, self.config.seed)
        captions = [self.samples[i % len(self.samples)].caption for i in chosen]
        return {"moments": self.latents[chosen], "cond": self._conditions(captions)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the weighted denoising loss."""
        moments = batch["moments"]
        mean, std = moments[:, 0], moments[:, 1]
        clean = mean + std * torch.randn(mean.shape, generator=rng).to(mean)
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        times = self.backbone.schedule.draw_times(len(mean), rng)
        losses = self._losses(clean, noise, times, batch["cond"])
        if self.config.method.min_snr:
            losses = losses * self.backbone.schedule.min_snr_weight(times, self.config.method.min_snr).to(losses)
        return losses.mean(), {}

    def _losses(self, clean: Tensor, noise: Tensor, times: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the squared error of each sample, averaged over its latent. `times` stay on the CPU."""
        schedule = self.backbone.schedule
        out = self.backbone.predict(schedule.add_noise(clean, noise, times), times.to(clean.device), cond)
        return (out.float() - schedule.target(clean, noise, times)).square().flatten(1).mean(1)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return transform and residual apart: decay would pull the transform away from the identity."""
        named = [(name, p) for name, p in self.denoiser.named_parameters() if p.requires_grad]
        transform = [p for name, p in named if TRANSFORM in name]
        residual = [p for name, p in named if TRANSFORM not in name]
        return [ParamGroup("transform", transform, decay=False), ParamGroup("residual", residual)]

    def artifact(self) -> Artifact:
        """Return the adapter's tensors with everything needed to use them."""
        header = Header(
            method=self.name,
            adapter=self.config.method.adapter,
            config=self.peft_config.to_dict(),
            base_model=self.backbone.name,
            base_fingerprint=self.backbone.fingerprint,
            component=self.backbone.component,
            extra={"prompt": self.samples[0].caption, "seed": self.config.seed, "images": len(self.samples)},
        )
        tensors = {key: value.detach().float().cpu().clone() for key, value in state(self.denoiser, ADAPTER).items()}
        return Artifact(tensors=tensors, header=header)

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the unweighted loss at fixed timesteps and noise, on training and on held-out images."""
        found = {"loss_fixed": self._fixed_loss(self.latents, self.samples, rng)}
        if self.held_out:
            found["loss_validation"] = self._fixed_loss(self.held_out_latents, self.held_out, rng)
        return found

    def _fixed_loss(self, moments: Tensor, samples: Sequence[Sample], rng: torch.Generator) -> float:
        levels = torch.linspace(0, self.backbone.schedule.steps - 1, EVALUATION_LEVELS + 2)[1:-1].round().long()
        total = 0.0
        for number, clean in enumerate(moments[: len(samples), 0]):
            clean = clean.to(self.backbone.device).expand(len(levels), *clean.shape)
            noise = torch.randn(clean.shape, generator=rng).to(clean)
            cond = self._to_device(self._conditions([samples[number].caption] * len(levels)))
            with self._autocast():
                total += float(self._losses(clean, noise, levels, cond).mean())
        return total / len(samples)

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw every preview prompt at fixed seeds."""
        watch = self.config.watch
        return {f"prompt{i:02d}": self._draw(text, watch.preview_count) for i, text in enumerate(self.preview_prompts)}

    def _draw(self, prompt: str, count: int) -> Tensor:
        backbone, watch = self.backbone, self.config.watch
        seeds = [stream(self.config.seed, "preview", number) for number in range(count)]
        noise = torch.stack([torch.randn(backbone.latent_shape, generator=rng) for rng in seeds])
        cond = self._to_device(self._conditions([prompt] * count))
        uncond = self._to_device(self._conditions([""] * count))
        with self._autocast():
            latents = SAMPLERS["ddim"](
                backbone.predict,
                noise.to(backbone.device),
                cond,
                uncond,
                backbone.schedule,
                backbone.schedule.timesteps(watch.preview_steps),
                4.0,
            )
            return backbone.decode(latents).float().cpu()

    def _to_device(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.backbone.device) for key, value in cond.items()}

    def _autocast(self) -> Any:
        dtype = self.backbone.dtype
        return torch.autocast(self.backbone.device.type, dtype=dtype, enabled=dtype != torch.float32)
