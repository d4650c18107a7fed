"""The settings of a block map, for flags and the page alike, and how one is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from lrdiff.generate_config import MAX_SEED
from trainers.sla.config import Sparsity

if TYPE_CHECKING:
    from lrdiff.sla.maps import LayerMap
    from lrdiff.sla.settings import SlaSettings


class MapConfig(Sparsity):
    """Which layer of which model to look at, when, and what the router is told."""

    model: str = "toys"
    """Base model: a shipped model's name or a folder in diffusers' layout."""

    layer: str = ""
    """Name of the attention layer; without it the first of those with the most tokens."""

    prompt: Annotated[str, Len(min_length=1)] = "a photo of a red cube"
    """What is being drawn while the layer is looked at."""

    at: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """At which sampling step: 0 is the first, where all is noise, 1 the last."""

    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    """Seed of the noise."""

    steps: PositiveInt = 20
    """Sampling steps of the whole drawing."""

    guidance: NonNegativeFloat = 3.0
    """How strongly the prompt is followed; 1 switches guidance off."""

    size: NonNegativeInt = 0
    """Side of the picture in pixels; 0 is the model's own size. A larger picture has more tokens."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto takes the GPU when there is one."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the model."""


@dataclass(frozen=True)
class Look:
    """What was found in a model.

    Attributes:
        model: Name of the model, for people.
        side: Pixels on a side at the model's own size.
        tokens: Tokens of every layer at that size, in model order.
        layer: The layer that was looked at.
        found: Its map, at the size that was asked for.
    """

    model: str
    side: int
    tokens: dict[str, int]
    layer: str
    found: LayerMap


def attention(config: MapConfig) -> SlaSettings:
    """Return the settings of the attention layers."""
    from lrdiff.sla.settings import SlaSettings

    return SlaSettings(**config.model_dump(include=set(Sparsity.model_fields)))


def look(config: MapConfig) -> Look:
    """Load a model, draw a prompt up to a step, and route what a layer sees there.

    Raises:
        ModelError: The model cannot be used.
        TargetError: The layer is unknown, or the model has none that can be replaced.
        ConfigError: Size, steps or device do not fit.
    """
    from lrdiff import backbones
    from lrdiff.generate import DTYPES
    from lrdiff.sla.maps import block_maps, layer_tokens

    backbone = backbones.load(config.model, device=config.device, dtype=DTYPES[config.dtype])
    tokens = layer_tokens(backbone)
    layer = config.layer or max(tokens, key=lambda name: tokens[name])
    found = block_maps(
        backbone,
        config.prompt,
        attention(config),
        [layer],
        seed=config.seed,
        at=config.at,
        steps=config.steps,
        guidance=config.guidance,
        width=config.size,
        height=config.size,
    )
    return Look(backbone.name, backbone.resolution, tokens, layer, found[layer])
