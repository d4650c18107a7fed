"""What the router decides in a real model: the block maps of its layers at one step of drawing a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrdiff.backbones import Backbone
from lrdiff.errors import ConfigError, TargetError
from lrdiff.generate import image_size
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS, Cond
from lrdiff.sla.blocks import CRITICAL, MARGINAL, NEGLIGIBLE
from lrdiff.sla.joint import joint_map
from lrdiff.sla.models import full_attention, processors, put_in, replaceable, take_out
from lrdiff.sla.processor import Listener
from lrdiff.sla.router import route
from lrdiff.sla.settings import SlaSettings


@dataclass(frozen=True)
class LayerMap:
    """The block map of one layer for one picture.

    Attributes:
        classes: int8 [heads, M, N]: 1 critical, 0 marginal, -1 negligible, of M query blocks by N key blocks.
        tokens: Tokens of the picture.
        text: Tokens of text in the same sequence, behind the picture's; their blocks are always critical.
        settings: With which it was routed.
    """

    classes: Tensor
    tokens: int
    text: int
    settings: SlaSettings

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the map that are critical, marginal and negligible. They add up to 1."""
        kinds = {"critical": CRITICAL, "marginal": MARGINAL, "negligible": NEGLIGIBLE}
        return {name: float((self.classes == kind).double().mean()) for name, kind in kinds.items()}


@torch.no_grad()
def block_maps(
    backbone: Backbone,
    prompt: str,
    settings: SlaSettings,
    layers: Sequence[str] = (),
    *,
    seed: int = 0,
    at: float = 0.5,
    steps: int = 20,
    guidance: float = 3.0,
    width: int = 0,
    height: int = 0,
) -> dict[str, LayerMap]:
    """Draw a prompt with full attention up to one step, and route what the layers see there.

    Nothing is sparse while the maps are made: they show what the router would do to the untouched model. Under the
    scopes "noncritical" and "all" no block is skipped, so no block is negligible there.

    Args:
        backbone: A loaded model without sparse-linear attention. It is given back as it was.
        prompt: What to draw.
        settings: Of the router.
        layers: Names of attention layers; none means all that can be replaced.
        seed: Of the noise at the start.
        at: Place of the step in the trajectory, from 0, the first one, where all is noise, to 1, the last.
        steps: Sampling steps of the whole trajectory.
        guidance: Strength of the prompt; the maps are those of the conditional branch.
        width: In pixels, 0 for native.
        height: In pixels, 0 for native.

    Returns:
        The maps by name of the layer, in model order.

    Raises:
        TargetError: A layer is unknown or cannot be replaced; the message lists those that can.
        ConfigError: `at` is outside 0 to 1, or size or steps do not fit the model.
    """
    if not 0 <= at <= 1:
        raise ConfigError(f"at = {at:g} is outside 0 (the first step) to 1 (the last)")
    names = _checked(backbone.denoiser, layers)
    if settings.scope != "marginal":
        settings = replace(settings, skip=0.0)
    width, height = image_size(backbone, width, height)
    shape = (1, backbone.latent_shape[0], height // backbone.latent_factor, width // backbone.latent_factor)
    noise = torch.randn(shape, generator=stream(seed, "latents")).to(backbone.device)
    times = backbone.schedule.timesteps(steps)
    times = times[: round(at * (len(times) - 1)) + 1]
    cond = backbone.condition([prompt])
    uncond = backbone.condition([""]) if guidance != 1.0 else None
    found: dict[str, LayerMap] = {}
    calls = 0

    def predict(x: Tensor, t: Tensor, given: Cond) -> Tensor:
        nonlocal calls
        calls += 1
        if calls < len(times):
            with full_attention(backbone.denoiser):
                return backbone.predict(x, t, given)
        with _listening(backbone.denoiser, {name: _recorder(found, name, settings) for name in names}):
            return backbone.predict(x, t, given)

    with _dense(backbone.denoiser):
        # Every sampler asks the network once per time, so the last call is the step in question.
        SAMPLERS["ddim"](predict, noise, cond, uncond, backbone.schedule, times, guidance)
    return {name: found[name] for name in names}


@torch.no_grad()
def layer_tokens(backbone: Backbone) -> dict[str, int]:
    """Return how many tokens of a picture each replaceable layer has at the native size, in model order.

    Raises:
        TargetError: There is no such layer, or sparse-linear attention is in the model already.
    """
    x = torch.zeros((1, *backbone.latent_shape), device=backbone.device)
    t = backbone.schedule.timesteps(3)[1:2].to(backbone.device)
    with _dense(backbone.denoiser):
        backbone.predict(x, t, backbone.condition([""]))
        return {name: processor.tokens for name, processor in processors(backbone.denoiser)}


def _checked(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the layers asked for, in model order."""
    known = list(replaceable(model))
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise TargetError(f"no attention layer {', '.join(unknown)} that can be replaced; there are {', '.join(known)}")
    return [name for name in known if not layers or name in layers]


@contextmanager
def _dense(model: nn.Module) -> Iterator[None]:
    """Have our processors in a model for a while, with every block critical: full attention that can be listened to."""
    put_in(model, SlaSettings(topk=1.0, skip=0.0))
    try:
        yield
    finally:
        take_out(model)


@contextmanager
def _listening(model: nn.Module, listeners: Mapping[str, Listener]) -> Iterator[None]:
    found = dict(processors(model))
    try:
        for name, listener in listeners.items():
            found[name].listener = listener
        yield
    finally:
        for name in listeners:
            found[name].listener = None


def _recorder(found: dict[str, LayerMap], name: str, settings: SlaSettings) -> Listener:
    def record(q: Tensor, k: Tensor, text: int) -> None:
        # With guidance the unconditional sample comes first.
        q, k = q[-1:], k[-1:]
        routed = joint_map(q, k, text, settings) if text else route(q, k, layout="blhd", **settings.router())
        found[name] = LayerMap(routed.classes[0].cpu(), q.shape[1] - text, text, settings)

    return record
