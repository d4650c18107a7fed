"""The configuration of a generation: one definition for flags, form and the record inside every image.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le, Len
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

MAX_SEED = 2**63 - 1
SHARE = r"\d+(?:\.\d*)?|\.\d+"


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One `--adapter` value.

    Attributes:
        path: A .safetensors file or a run directory.
        weight: Strength; 0 is the base model, 1 the adapter as trained.
        begin: Share of the sampling steps after which it begins to act; 0 is the first step, where the noise is.
        end: Share of the sampling steps after which it no longer acts; 1 is the end, where the image is.
    """

    path: Path
    weight: float
    begin: float = 0.0
    end: float = 1.0

    def acts(self, step: int, steps: int) -> bool:
        """Tell whether it acts at a step, counted from 0: where `begin <= step / steps < end`."""
        return self.begin <= step / steps < self.end

    def __str__(self) -> str:
        return f"{self.path}:{self.weight}{span(self.begin, self.end)}"


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be made.

    Attributes:
        prompt: What to draw.
        seed: Of this image alone.
        scale: Factor on every adapter's weight.
    """

    prompt: str
    seed: int
    scale: float


def _listed(value: Any) -> Any:
    """Take one string for a list of one."""
    return (value,) if isinstance(value, str) else value


class GenerateConfig(BaseModel):
    """What to generate. One image is made for every scale, prompt and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str = "toys"
    """Base model: a shipped model's name, a folder in diffusers' layout, or a hub id that was downloaded before."""

    adapter: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Adapters to apply together, each FILE:WEIGHT or RUN_DIRECTORY:WEIGHT; without :WEIGHT the weight is 1. With
    @FROM-TO behind it, one acts in a part of the sampling steps only, as shares: 0 is the first step, 1 the end of the
    last, so that @0.5-1 is the second half, which decides the details."""

    decoder: Path | None = None
    """Marked decoder to use instead of the base model's: a folder that lrdiff watermark fuse wrote."""

    scale: Annotated[tuple[float, ...], Len(min_length=1)] = (1.0,)
    """Factors on every adapter's weight; several make the images once per factor, for comparison."""

    prompt: Annotated[tuple[str, ...], Len(min_length=1), BeforeValidator(_listed)] = ("a photo of a red cube",)
    """What to draw; several prompts are each drawn with every seed."""

    negative_prompt: str = ""
    """What to steer away from; has an effect when guidance is not 1."""

    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    """Seed of the first image; the next ones take the following numbers."""

    count: PositiveInt = 1
    """Images per prompt (and scale), with seeds seed, seed + 1, ..."""

    steps: PositiveInt = 20
    """Sampling steps: evaluations of the network per image."""

    guidance: NonNegativeFloat = 3.0
    """How strongly the prompt is followed; 1 switches guidance off and halves the time. 3 suits toys; 5 to 7 is usual
    for Stable Diffusion, and 1 for FLUX.1, which is told its own guidance."""

    sampler: Literal["ddim", "dpm++2m", "euler"] = "dpm++2m"
    """How the noise is removed; euler is for flow models only."""

    eta: Annotated[float, Ge(0.0), Le(1.0)] = 0.0
    """Fresh noise per step, for ddim only: 0 is deterministic, 1 as random as DDPM."""

    width: NonNegativeInt = 0
    """Image width in pixels; 0 is the model's own size."""

    height: NonNegativeInt = 0
    """Image height in pixels; 0 is the model's own size."""

    out: Path = Path("outputs")
    """Folder for the images; it is created, and files in it are never overwritten."""

    grid: bool = False
    """Also write one image with all images side by side, labelled."""

    batch_size: PositiveInt = 4
    """Images computed together. Changes speed and memory, not the images."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto takes the GPU when there is one."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the model."""

    @field_validator("adapter")
    @classmethod
    def _adapters_can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_adapter(text)
        return value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} has no effect with sampler {self.sampler}; use ddim or eta 0")
        if self.scale != (1.0,) and not self.adapter:
            raise ValueError("scale has no effect without an adapter")
        if self.negative_prompt and self.guidance == 1.0:
            raise ValueError("negative_prompt has no effect with guidance 1")
        if self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(f"seed + count goes past {MAX_SEED}; use a smaller seed")
        for text, spec in zip(self.adapter, self.adapters, strict=True):
            if not any(spec.acts(step, self.steps) for step in range(self.steps)):
                raise ValueError(
                    f"adapter {text!r}: none of the {self.steps} sampling steps begins in this range, so it would "
                    "change nothing; widen the range or take more steps"
                )
        for name in ("scale", "prompt"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} lists a value twice: the same image would be made twice")
        return self

    @property
    def adapters(self) -> tuple[AdapterSpec, ...]:
        """The adapters, parsed."""
        return tuple(parse_adapter(text) for text in self.adapter)


def parse_adapter(text: str) -> AdapterSpec:
    """Read "PATH", "PATH:WEIGHT", and either with "@FROM-TO" behind it.

    A colon whose right side is no number belongs to the path, and so does an @ whose right side is no range, unless a
    weight stands before it.

    Raises:
        ValueError: The path is empty, the weight is not finite, or the range is none, or empty.
    """
    rest, begin, end = _split_span(text)
    path, colon, number = rest.rpartition(":")
    weight = _number(number) if colon else None
    if weight is None:
        path, weight = rest, 1.0
    if not path.strip():
        raise ValueError(f"adapter {text!r} names no file; write FILE:WEIGHT or RUN_DIRECTORY:WEIGHT")
    if not math.isfinite(weight):
        raise ValueError(f"adapter {text!r}: the weight must be a finite number")
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(
            f"adapter {text!r}: a range of steps goes from a smaller to a larger share, both from 0 to 1; "
            "@0.5-1 is the second half"
        )
    return AdapterSpec(Path(path).expanduser(), weight, begin, end)


def span(begin: float, end: float) -> str:
    """Return "@FROM-TO" as an adapter has it behind its weight; empty for all steps."""
    return "" if (begin, end) == (0.0, 1.0) else f"@{begin:g}-{end:g}"


def _split_span(text: str) -> tuple[str, float, float]:
    """Take "@FROM-TO" off the end of an adapter's text."""
    rest, at, tail = text.rpartition("@")
    found = re.fullmatch(rf"({SHARE})-({SHARE})", tail) if at else None
    if found:
        return rest, float(found[1]), float(found[2])
    _, colon, number = rest.rpartition(":")
    if colon and _number(number) is not None and "/" not in tail:
        raise ValueError(f"adapter {text!r}: {tail!r} is no range of steps; write @FROM-TO, for example @0.5-1")
    return text, 0.0, 1.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def plan(config: GenerateConfig) -> list[Item]:
    """List the images that a config asks for: scale by scale, prompt by prompt, seed by seed."""
    seeds = range(config.seed, config.seed + config.count)
    return [Item(prompt, seed, scale) for scale in config.scale for prompt in config.prompt for seed in seeds]


def single(config: GenerateConfig, item: Item, width: int, height: int) -> dict[str, Any]:
    """Return the config that makes one image of a larger one again, as JSON values.

    Settings that do not change the image (folder, batch size, grid) are left at their defaults, so the same image
    carries the same record wherever and with whatever else it was made.
    """
    values = config.model_dump(mode="json", exclude={"out", "batch_size", "grid"})
    values.update(prompt=[item.prompt], seed=item.seed, count=1, scale=[item.scale], width=width, height=height)
    return values
