"""`Denoise`: fine-tune an adapter on images by the denoising loss of the base model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.errors import ConfigError
from lrdiff.inject import inject, state
from lrdiff.rng import derive, stream
from lrdiff.sampling import SAMPLERS
from trainers.buckets import bucketed_batch
from trainers.config import DataConfig, RunConfig
from trainers.data import Sample, epoch_indices, find_samples
from trainers.denoise.average import Average
from trainers.denoise.config import DenoiseSettings
from trainers.denoise.patience import Patience
from trainers.denoise.pictures import Latents, encode
from trainers.denoise.prior import draw_class
from trainers.engine import Engine
from trainers.method import Batch, Method, Metrics, ParamGroup

log = logging.getLogger(__name__)

ADAPTER = "default"
TRANSFORM = ".tensor_lora_transform."  # in the names of a tensor-lora transform's parameters
EVALUATION_LEVELS = 8
"""Timesteps at which the fixed evaluation measures, evenly spread over the schedule."""
EVALUATION_IMAGES = 32
"""Images of a folder on which it measures, evenly spread over them: on thousands it would take longer than training."""
LONGEST_SHOWN = 80
"""Letters of a caption that the preflight shows."""


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
        self._check_patience()
        self.name = name
        self.backbone = backbones.load(config.model, device=engine.device, dtype=engine.dtype)
        self.samples = find_samples(config.data.images, config.data.prompt)
        if config.data.prompt != DataConfig().prompt and config.data.prompt not in {s.caption for s in self.samples}:
            log.warning("data.prompt %r is not used: every picture has a caption of its own", config.data.prompt)
        if len(self.samples) == 1:
            log.warning("only one training image: the subject will be copied with its background and pose")
        self.latents = self._encode(self.samples, flip=config.data.flip)
        held_out = config.data.validation
        self.held_out = find_samples(held_out, config.data.prompt, "data.validation") if held_out else []
        self.held_out_latents = self._encode(self.held_out)
        self.preview_prompts = config.watch.preview_prompts or (self.samples[0].caption,)
        settings = config.method
        self.prior = draw_class(self.backbone, settings, config.seed) if settings.prior_prompt else None
        self.conditions = self._condition()
        self.backbone.release_encoders()
        self._insert()
        trained = [p for group in self.param_groups() for p in group.params]
        self.average = Average(trained, settings.ema) if settings.ema else None
        self.patience = Patience(settings.patience) if settings.patience else None

    def _check_patience(self) -> None:
        """Refuse an early stop that could never come."""
        config = self.config
        if config.method.patience and (config.data.validation is None or not config.watch.evaluate_every):
            raise ConfigError(
                "method.patience stops on the loss of held-out images: give data.validation and watch.evaluate_every, "
                "or leave it 0"
            )

    def _insert(self) -> None:
        """Put the adapter into the denoiser, and set how that computes."""
        settings = self.config.method
        self.denoiser = self.backbone.denoiser
        layers = self.backbone.target_layers(settings.targets)
        self.peft_config = settings.peft(layers)
        self.report = inject(self.denoiser, self.peft_config, ADAPTER)
        if settings.checkpointing:
            cast(Any, self.denoiser).enable_gradient_checkpointing()
        if settings.compile != "off":
            self.denoiser.compile(backend=settings.compile)

    def describe(self) -> list[str]:
        """Return the preflight in words: what is trained, on which layers, with which images."""
        base = sum(p.numel() for p in self.denoiser.parameters()) - self.report.parameters
        return [
            f"base model {self.backbone.name}: {base:,} parameters, all frozen",
            f"{self.name}: {self.report.parameters:,} parameters on {len(self.report.targets)} layers, "
            f"{self.report.targets[0]} ... {self.report.targets[-1]}",
            *self._describe_pictures(),
        ]

    def _describe_pictures(self) -> list[str]:
        captions = sorted({sample.caption for sample in self.samples})
        shown = "; ".join(repr(shorten(text, LONGEST_SHOWN, placeholder=" ...")) for text in captions[:3])
        shown += " ..." if len(captions) > 3 else ""
        settings = self.config.method
        extra = [f"{_images(len(self.prior))} of {settings.prior_prompt!r} preserved"] if self.prior else []
        largest = max(len(self.samples), len(self.held_out))
        extra += [f"losses are measured on {EVALUATION_IMAGES} of them"] if largest > EVALUATION_IMAGES else []
        extra += ["activations are computed again in the backward pass"] if settings.checkpointing else []
        extra += [f"the denoiser is compiled: {settings.compile}"] if settings.compile != "off" else []
        return [
            f"{_images(len(self.samples))} at {self._sizes()} px, captions {shown}",
            f"{_images(len(self.held_out))} held out for validation",
            *extra,
        ]

    def _sizes(self) -> str:
        """Return the sizes of the training pictures in words."""
        factor = self.backbone.latent_factor
        sizes = sorted({(shape[-1] * factor, shape[-2] * factor) for shape in self.latents.shapes})
        square = len(sizes) == 1 and sizes[0][0] == sizes[0][1]
        return str(sizes[0][0]) if square else ", ".join(f"{width} x {height}" for width, height in sizes)

    def _encode(self, samples: Sequence[Sample], flip: bool = False) -> Latents:
        return encode(self.backbone, samples, flip=flip, buckets=self.config.method.buckets)

    def _condition(self) -> dict[str, dict[str, Tensor]]:
        """Encode every text the run will need, once."""
        texts = {sample.caption for sample in [*self.samples, *self.held_out]} | set(self.preview_prompts) | {""}
        texts |= {self.config.method.prior_prompt} if self.prior else set()
        with torch.no_grad():
            return {text: {k: v.cpu() for k, v in self.backbone.condition([text]).items()} for text in sorted(texts)}

    def _conditions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stack cached conditions of texts along the batch axis."""
        found = [self.conditions[text] for text in texts]
        return {key: torch.cat([item[key] for item in found]) for key in found[0]}

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return moments [B, 2, C, h, w] and conditions of micro-batch `index`; every epoch is a new permutation."""
        count, size, seed = len(self.latents), self.config.data.batch_size, self.config.seed
        if self.config.method.buckets:
            chosen = bucketed_batch(index, size, self.latents.shapes, seed)
        else:
            chosen = epoch_indices(index, size, count, seed)
        batch = self._gather(self.latents, chosen, [self.samples[i % len(self.samples)].caption for i in chosen])
        if self.prior is None:
            return batch
        others = epoch_indices(index, len(chosen), len(self.prior), derive(seed, "prior order"))
        return batch | {"prior": self._gather(self.prior, others, [self.config.method.prior_prompt] * len(others))}

    def _gather(self, latents: Latents, chosen: Sequence[int], captions: Sequence[str]) -> dict[str, Any]:
        cond = self._conditions(captions)
        crops = [latents.crops[i] for i in chosen]
        cond |= {key: torch.cat([crop[key] for crop in crops]) for key in crops[0]}
        return {"moments": torch.stack([latents.moments[i] for i in chosen]), "cond": cond}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the weighted denoising loss, of the pictures and of the class that is to be preserved."""
        loss = self._loss(batch, rng)
        if "prior" not in batch:
            return loss, {}
        prior = self._loss(batch["prior"], rng)
        total = loss + self.config.method.prior_weight * prior
        return total, {"loss_pictures": loss.detach(), "loss_prior": prior.detach()}

    def _loss(self, batch: Batch, rng: torch.Generator) -> Tensor:
        moments = batch["moments"]
        mean, std = moments[:, 0], moments[:, 1]
        clean = mean + std * torch.randn(mean.shape, generator=rng).to(mean)
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        times = self.backbone.schedule.draw_times(len(mean), rng)
        losses = self._losses(clean, noise, times, batch["cond"])
        if self.config.method.min_snr:
            losses = losses * self.backbone.schedule.min_snr_weight(times, self.config.method.min_snr).to(losses)
        return losses.mean()

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
        pace = getattr(self.config.method, "transform_lr", 1.0)
        return [ParamGroup("transform", transform, lr_scale=pace, decay=False), ParamGroup("residual", residual)]

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
        with self._averaged():
            found = state(self.denoiser, ADAPTER)
            tensors = {key: value.detach().float().cpu().clone() for key, value in found.items()}
        return Artifact(tensors=tensors, header=header)

    def stepped(self, step: int) -> None:
        """Move the average along."""
        if self.average is not None:
            self.average.update(step)

    def done(self) -> str:
        """Return why the held-out images need no further step, or ""."""
        return self.patience.reason() if self.patience is not None else ""

    def state(self) -> dict[str, Tensor]:
        """Return average and patience."""
        return {key: value for part in self._kept() for key, value in part.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for part in self._kept():
            part.load_state(state)

    def _kept(self) -> list[Average | Patience]:
        return [part for part in (self.average, self.patience) if part is not None]

    def _averaged(self) -> AbstractContextManager[None]:
        """Return the context in which the adapter is its average, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the unweighted loss at fixed timesteps and noise, on training and on held-out images."""
        with self._averaged():
            found = {"loss_fixed": self._fixed_loss(self.latents, self.samples, rng)}
            if self.held_out:
                found["loss_validation"] = self._fixed_loss(self.held_out_latents, self.held_out, rng)
        if self.patience is not None:
            self.patience.see(found["loss_validation"])
        return found

    def _fixed_loss(self, latents: Latents, samples: Sequence[Sample], rng: torch.Generator) -> float:
        levels = torch.linspace(0, self.backbone.schedule.steps - 1, EVALUATION_LEVELS + 2)[1:-1].round().long()
        total, measured = 0.0, measured_images(len(samples))
        for number in measured:
            clean = latents.moments[number][0].to(self.backbone.device)
            clean = clean.expand(len(levels), *clean.shape)
            noise = torch.randn(clean.shape, generator=rng).to(clean)
            chosen = self._gather(latents, [number] * len(levels), [samples[number].caption] * len(levels))
            with self._autocast():
                total += float(self._losses(clean, noise, levels, self._to_device(chosen["cond"])).mean())
        return total / len(measured)

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw every preview prompt at fixed seeds."""
        count = self.config.watch.preview_count
        with self._averaged():
            return {f"prompt{i:02d}": self._draw(text, count) for i, text in enumerate(self.preview_prompts)}

    def _draw(self, prompt: str, count: int) -> Tensor:
        backbone, watch, guidance = self.backbone, self.config.watch, self.config.method.guidance
        seeds = [stream(self.config.seed, "preview", number) for number in range(count)]
        noise = torch.stack([torch.randn(backbone.latent_shape, generator=rng) for rng in seeds])
        cond = self._to_device(self._conditions([prompt] * count))
        uncond = self._to_device(self._conditions([""] * count)) if guidance != 1.0 else None
        with self._autocast():
            latents = SAMPLERS["ddim"](
                backbone.predict,
                noise.to(backbone.device),
                cond,
                uncond,
                backbone.schedule,
                backbone.schedule.timesteps(watch.preview_steps),
                guidance,
            )
            return backbone.decode(latents).float().cpu()

    def _to_device(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.backbone.device) for key, value in cond.items()}

    def _autocast(self) -> Any:
        dtype = self.backbone.dtype
        return torch.autocast(self.backbone.device.type, dtype=dtype, enabled=dtype != torch.float32)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def measured_images(count: int) -> list[int]:
    """Return which of `count` images the fixed evaluation measures: all of a few, of many some, evenly spread."""
    chosen = min(count, EVALUATION_IMAGES)
    return [number * count // chosen for number in range(chosen)]
