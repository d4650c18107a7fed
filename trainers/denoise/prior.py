"""Prior preservation (arXiv 2208.12242): what the untouched model makes of the class, trained on beside the subject."""

from __future__ import annotations

import logging

import torch

from lrdiff.backbones import Backbone
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS
from trainers.denoise.config import PictureSettings
from trainers.denoise.pictures import Latents

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Class images that are drawn together."""


@torch.no_grad()
def draw_class(backbone: Backbone, settings: PictureSettings, seed: int) -> Latents:
    """Draw the class images as latents, before any adapter is in the model.

    The same settings and seed give the same latents, so a resumed run draws them again instead of keeping files.

    Args:
        backbone: With its encoders.
        settings: `prior_prompt`, `prior_count`, `prior_steps` and `guidance` are read.
        seed: The run's.
    """
    log.info("drawing %d images of %r to be preserved", settings.prior_count, settings.prior_prompt)
    found, guidance = [], settings.guidance
    for numbers in torch.arange(settings.prior_count).split(AT_ONCE):
        shape = backbone.latent_shape
        noise = torch.stack([torch.randn(shape, generator=stream(seed, "prior", int(n))) for n in numbers])
        cond = backbone.condition([settings.prior_prompt] * len(noise))
        uncond = backbone.condition([""] * len(noise)) if guidance != 1.0 else None
        times = backbone.schedule.timesteps(settings.prior_steps)
        start = noise.to(backbone.device)
        clean = SAMPLERS["ddim"](backbone.predict, start, cond, uncond, backbone.schedule, times, guidance)
        found += [torch.stack([x, torch.zeros_like(x)]) for x in clean.float().cpu()]
    side = backbone.resolution
    return Latents(found, [backbone.size_condition((side, side), (0, 0)) for _ in found])
