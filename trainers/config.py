"""The configuration of a run: one definition for the flags, the TOML file, the web form and the JSON record.

Nothing here imports torch, so that `--help` and the web form answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from annotated_types import Ge, Le, Len
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

SCHEMA = 1


class Settings(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Settings):
    """The images a run learns from."""

    images: Path = Path()
    """Folder of training images, or a text file with one path per line. A text file with the same name beside an image
    is its caption, or its line in metadata.jsonl."""

    prompt: Annotated[str, Len(min_length=1)] = "a photo of sks"
    """Caption of every image without one of its own. Its rare word (here "sks") becomes the subject's name."""

    validation: Path | None = None
    """Folder of images that are never trained on; their loss is reported as validation loss."""

    batch_size: PositiveInt = 4
    """Images per step (per process)."""

    flip: bool = False
    """Also train on mirrored images. Leave off when left and right matter, for example with writing on the subject."""


class OptimConfig(Settings):
    """How long and how fast to train."""

    steps: PositiveInt = 300
    """Optimizer steps in all, counted from the very start, also after a resume."""

    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW, fused on a GPU; or with moments in 8 bits, which needs a GPU and the package bitsandbytes."""

    lr: PositiveFloat = 2e-3
    """Peak learning rate of AdamW. 2e-3 suits the shipped toys; on large models 1e-4 to 5e-4 is usual."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after the warm-up; linear and cosine end at zero."""

    warmup: NonNegativeInt = 20
    """Steps over which the learning rate rises linearly from zero."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW; parameters that must stay near their start are left out by the method."""

    beta1: Annotated[float, Ge(0.0), Le(0.9999)] = 0.9
    """Decay of AdamW's first moment."""

    beta2: Annotated[float, Ge(0.0), Le(0.99999)] = 0.99
    """Decay of AdamW's second moment."""

    clip: PositiveFloat = 1.0
    """Gradients with a larger global norm are scaled down to it."""

    accumulate: PositiveInt = 1
    """Micro-batches whose gradients are averaged into one step."""


class PrecisionConfig(Settings):
    """Where and in which number format to compute."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one; what was taken is written into run.json."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the frozen base model and of the arithmetic; adapter weights stay fp32. fp16 is for GPUs without
    bf16: its range is narrow, and a run that leaves it stops."""


class WatchConfig(Settings):
    """What a run writes while it trains. Intervals are in steps; 0 switches the thing off."""

    log_every: PositiveInt = 10
    """Write a line of metrics."""

    checkpoint_every: NonNegativeInt = 100
    """Write a checkpoint from which the run can be resumed exactly."""

    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints stay on disk."""

    evaluate_every: NonNegativeInt = 50
    """Measure the loss at fixed timesteps and seeds."""

    preview_every: NonNegativeInt = 100
    """Draw preview images at fixed seeds, also before the first step and after the last."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts of the previews; none means the caption of the first image."""

    preview_steps: PositiveInt = 15
    """Sampling steps of a preview image."""

    preview_count: PositiveInt = 2
    """Preview images per prompt."""

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse prompts of previews that are switched off."""
        if self.preview_prompts and not self.preview_every:
            raise ValueError("preview_every=0 leaves preview_prompts without effect; leave out one or the other")
        return self


M = TypeVar("M", bound=Settings)


class RunConfig(Settings, Generic[M]):
    """Everything that decides a run. `M` is the method's own configuration."""

    needs_images: ClassVar[bool] = True
    unread: ClassVar[tuple[str, ...]] = ()
    """Dotted names of shared settings that the method does not read; they keep their defaults."""

    model: str = "toys"
    """Base model: the name of a shipped one, a folder in diffusers' layout, or a hub id that was downloaded before."""

    data: DataConfig = DataConfig()
    """The images a run learns from."""

    method: M
    """The method's own settings."""

    optim: OptimConfig = OptimConfig()
    """How long and how fast to train."""

    precision: PrecisionConfig = PrecisionConfig()
    """Where and in which number format to compute."""

    watch: WatchConfig = WatchConfig()
    """What a run writes while it trains."""

    seed: NonNegativeInt = 0
    """Every random number of the run follows from it."""

    @property
    def has_images(self) -> bool:
        """Whether a folder of images was given."""
        return self.data.images != Path()

    def files(self) -> dict[str, Path]:
        """Return further files that decide the run, by the setting that names them."""
        return {}

    @model_validator(mode="after")
    def _nothing_unread(self) -> Self:
        """Refuse other values of settings that the method does not read."""
        for path in self.unread:
            section, _, name = path.partition(".")
            group = getattr(self, section)
            if getattr(group, name) != type(group).model_fields[name].default:
                raise ValueError(f"{path} has no effect with this method; leave it out")
        return self

    def find_model(self) -> Path:
        """Return the folder of the base model. Raises `ModelError` where there is none."""
        from lrdiff import backbones

        return backbones.find(self.model)

    def settled(self) -> Self:
        """Return the settings with what is decided once, before a run is written down, such as a drawn key."""
        return self


def describe_errors(error: Any, where: str = "config") -> str:
    """Turn a pydantic ValidationError into one line per problem: `optim.lr: Must be greater than 0 (got -1)`.

    Args:
        error: The `pydantic.ValidationError`.
        where: What was being read, put before each line.
    """
    lines = []
    for item in error.errors(include_url=False):
        path = "".join(f"{part}: " for part in [".".join(str(part) for part in item["loc"])] if part)
        plain = item["type"] != "missing" and not isinstance(item["input"], dict)
        got = f" (got {item['input']!r})" if plain else ""
        lines.append(f"{where}: {path}{describe(item)}{got}")
    return "\n".join(lines)


WORDS = {
    "extra_forbidden": "There is no such setting",
    "missing": "Must be given",
    "int_parsing": "Must be a whole number",
    "int_type": "Must be a whole number",
    "int_from_float": "Must be a whole number",
    "float_parsing": "Must be a number",
    "float_type": "Must be a number",
    "bool_parsing": "Must be true or false",
    "bool_type": "Must be true or false",
    "string_type": "Must be text",
    "string_too_short": "Must not be empty",
    "too_short": "Must not be empty",
    "dict_type": "Must be a table of settings",
    "model_type": "Must be a table of settings",
}
"""What is wrong with a value, by pydantic's type of the error; its own words are for programmers."""


def describe(item: Any) -> str:
    """Return one of the errors of a pydantic ValidationError in words, without its place."""
    plain = WORDS.get(item["type"])
    return plain or item["msg"].removeprefix("Value error, ").replace("Input should be", "Must be")
