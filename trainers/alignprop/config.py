"""Settings of AlignProp. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from lrdiff.alignprop.specs import MEASURED, Spec, parse
from lrdiff.assets import ASSETS
from lrdiff.errors import ConfigError
from trainers.config import OptimConfig, RunConfig, Settings, WatchConfig
from trainers.denoise.adapters import BoftSettings, DoraSettings, LohaSettings, LokrSettings, LoraSettings, OftSettings
from trainers.denoise.config import DenoiseSettings, Targets, TensorLoraSettings

PROMPTS = ASSETS / "prompts"
WITHOUT_K = ("random-per-step", "lv")
Share = Annotated[float, Ge(0.0), Le(1.0)]
Kind = Literal["lora", "dora", "loha", "lokr", "tensor-lora", "oft", "boft"]
KINDS: dict[Kind, type[DenoiseSettings]] = {
    "lora": LoraSettings,
    "dora": DoraSettings,
    "loha": LohaSettings,
    "lokr": LokrSettings,
    "tensor-lora": TensorLoraSettings,
    "oft": OftSettings,
    "boft": BoftSettings,
}


class AlignPropSettings(Settings):
    """Towards a reward, by sending its gradient through the sampler (arXiv 2310.03739)."""

    reward: Annotated[tuple[str, ...], Len(min_length=1)] = ("compressibility",)
    """What is maximised: NAME, NAME=ARGUMENT, each with :WEIGHT behind it where it is not 1. Several are added up."""

    bound: Literal["none", "relu", "distance"] = "none"
    """Loss of a reward r: none is -r, relu is relu(target - r), distance is |r - target|."""

    target: tuple[float, ...] = ()
    """With a bound: the value each reward shall reach, in its own units, in the order of `reward`."""

    normalise: Annotated[int, Ge(0), Le(4096)] = 0
    """Divide each reward by its standard deviation over so many pictures of the untouched model, at least 2; 0 leaves
    rewards in their own units."""

    straight_through: bool = False
    """Let gradients pass through pixels outside the range of colours, which otherwise learn nothing."""

    mode: Literal["last-k", "random-k", "random-per-step", "lv", "spaced", "sparse"] = "last-k"
    """Which sampling steps carry the gradient, see lrdiff/alignprop/README.md."""

    k: PositiveInt = 1
    """How many of them do; with random-k the most. Not for random-per-step and lv."""

    repeats: PositiveInt = 2
    """With lv: how often the last step is made again from fresh noise."""

    early_stop: NonNegativeInt = 0
    """With spaced: leave out the last steps, a number drawn from 0 to this one for each batch (DRTune)."""

    detach_negative: bool = False
    """Guidance's negative branch is a constant: half of the gradient's cost."""

    recompute: bool = True
    """Compute activations of differentiated steps and of the decoder's blocks again in the backward pass: memory then
    hardly grows with k."""

    recompute_blocks: bool = False
    """Compute also the denoiser again block by block, where a single step does not fit into memory: one more call of
    the network for each step with gradient."""

    sampling_steps: PositiveInt = 10
    """Sampling steps of a picture (DDIM, or Euler for flow models), spaced from the noisiest time."""

    guidance: NonNegativeFloat = 3.0
    """How strongly pictures follow their prompts; 1 switches guidance off and halves the time. 3 suits toys; 5 to 7 is
    usual for Stable Diffusion, and 1 for FLUX.1, which is told its own guidance."""

    prompts: Path | None = None
    """Text file with a prompt on each line to train on. None takes assets/prompts/toys-train.txt."""

    held_out: Path | None = None
    """Text file of prompts that are only measured on. None takes assets/prompts/toys-held-out.txt."""

    held_out_count: PositiveInt = 6
    """How many of them are measured on, two pictures each."""

    monitor: str = ""
    """A reward that is only measured, on the held-out prompts: NAME or NAME=ARGUMENT. Its network should be another one
    than the reward's: prompt-match=probe-b where prompt-match=probe-a is trained on."""

    penalty: NonNegativeFloat = 0.0
    """Weight of the squared difference to the untouched model's predictions on the steps that carry gradient."""

    min_diversity: Share = 0.0
    """End the run when pictures of one prompt differ less than this share of what they did at the start, and keep the
    adapter of the evaluation before; 0 never."""

    max_drop: NonNegativeFloat = 0.0
    """End the run likewise when the monitor falls by more than this below its best; 0 never."""

    adapter: Kind = "lora"
    """What is trained: an adapter by its method's name."""

    targets: Targets = "attention"
    """Which layers of the denoiser are adapted: attention projections, also feed-forward, also convolutions."""

    r: PositiveInt = 4
    """Rank of the adapter, where its kind has one."""

    alpha: Annotated[int, Gt(0)] = 4
    """Scale of the adapter, where its kind has one; for LoRA s = alpha / r."""

    @field_validator("reward")
    @classmethod
    def _known_rewards(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        specs = [_parsed(text) for text in value]
        flat = [spec.name for spec in specs if spec.name in MEASURED]
        if flat:
            raise ValueError(f"reward {flat[0]} has no gradient, so it can only be measured; give it as method.monitor")
        names = [str(spec) for spec in specs]
        if len(set(names)) < len(names):
            raise ValueError("names a reward twice; give it once with a weight")
        return value

    @field_validator("monitor")
    @classmethod
    def _known_monitor(cls, value: str) -> str:
        if value and _parsed(value).weight != 1.0:
            raise ValueError("is only measured, so it takes no weight; leave :WEIGHT out")
        return value

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse settings that another one leaves without effect, and those that do not fit together."""
        off: dict[str, tuple[str, ...]] = {
            f"mode={self.mode}": (
                *(("k",) if self.mode in WITHOUT_K else ()),
                *(("repeats",) if self.mode != "lv" else ()),
                *(("early_stop",) if self.mode != "spaced" else ()),
            ),
            "guidance=1": ("detach_negative",) if self.guidance == 1.0 else (),
            "monitor=''": ("max_drop",) if not self.monitor else (),
        }
        for switch, names in off.items():
            changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
            if changed:
                raise ValueError(f"{switch} leaves {', '.join(changed)} without effect; leave out one or the other")
        steps = self.sampling_steps - self.early_stop
        if steps < 1:
            raise ValueError(f"early_stop={self.early_stop} leaves no step of sampling_steps={self.sampling_steps}")
        if self.mode not in WITHOUT_K and self.k > steps:
            left = f" without early_stop={self.early_stop}" if self.early_stop else ""
            raise ValueError(f"k={self.k} is more than sampling_steps={self.sampling_steps}{left}; lower k")
        if self.bound == "none" and self.target:
            raise ValueError("bound=none leaves target without effect; leave out one or the other")
        if self.bound != "none" and len(self.target) != len(self.reward):
            raise ValueError(
                f"bound={self.bound} needs targets, and target has {len(self.target)} numbers for {len(self.reward)} "
                "rewards; give one for each"
            )
        if self.normalise == 1:
            raise ValueError("normalise=1: one picture has no spread; use 0 or at least 2")
        if self.bound != "none" and any(spec.weight < 0 for spec in self.rewards()):
            raise ValueError("bound with a negative weight would drive a reward away from its target; use bound none")
        self.adapter_settings()
        return self

    def rewards(self) -> list[Spec]:
        """Return the rewards, read."""
        return [parse(text) for text in self.reward]

    def adapter_settings(self) -> DenoiseSettings:
        """Return the settings of the adapter, whose `peft` makes peft's configuration for layer names.

        Raises:
            ValueError: Rank or scale was given for a kind that has none, or the kind does not adapt these targets.
        """
        kind = KINDS[self.adapter]
        own = {name: getattr(self, name) for name in ("r", "alpha")}
        if "r" in kind.model_fields:
            return kind(targets=self.targets, **own)
        changed = [name for name, value in own.items() if value != type(self).model_fields[name].default]
        if changed:
            raise ValueError(f"adapter={self.adapter} leaves {', '.join(changed)} without effect; leave it out")
        return kind(targets=self.targets)


class AlignPropOptim(OptimConfig):
    """How long and how fast to train."""

    steps: PositiveInt = 60
    """Optimizer steps in all, counted from the very start, also after a resume."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up; linear and cosine end at zero."""

    warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from zero."""


class AlignPropWatch(WatchConfig):
    """What a run writes while it trains. Intervals are in steps; 0 switches the thing off."""

    log_every: PositiveInt = 1
    """Write a line of metrics."""

    checkpoint_every: NonNegativeInt = 20
    """Write a checkpoint from which the run can be resumed exactly."""

    evaluate_every: NonNegativeInt = 20
    """Measure rewards, monitor and diversity on held-out prompts at fixed seeds."""

    preview_every: NonNegativeInt = 20
    """Draw preview images at fixed seeds, also before the first step and after the last."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts of the previews; none means the first two held-out ones."""


class AlignPropRun(RunConfig[AlignPropSettings]):
    """Everything that decides a run."""

    needs_images: ClassVar[bool] = False
    unread: ClassVar[tuple[str, ...]] = ("data.images", "data.prompt", "data.validation", "data.flip")

    optim: AlignPropOptim = AlignPropOptim()  # pyright: ignore[reportIncompatibleVariableOverride]
    """How long and how fast to train."""

    watch: AlignPropWatch = AlignPropWatch()  # pyright: ignore[reportIncompatibleVariableOverride]
    """What a run writes while it trains."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        """Refuse stops that could never come."""
        names = [name for name in ("min_diversity", "max_drop") if getattr(self.method, name)]
        if names and not self.watch.evaluate_every:
            raise ValueError(f"watch.evaluate_every=0 leaves method.{names[0]} without effect: nothing is measured")
        return self

    @property
    def train_prompts(self) -> Path:
        """The file of prompts to train on."""
        return self.method.prompts or PROMPTS / "toys-train.txt"

    @property
    def held_out_prompts(self) -> Path:
        """The file of prompts that are only measured on."""
        return self.method.held_out or PROMPTS / "toys-held-out.txt"

    def files(self) -> dict[str, Path]:
        """Return further files that decide the run."""
        method = self.method
        specs = [*method.rewards(), *([_parsed(method.monitor)] if method.monitor else [])]
        # What is no path here is a hub's id, which names its own content.
        paths = {f"{path} of {spec.name}": path for spec in specs for path in spec.paths() if path.exists()}
        return {"method.prompts": self.train_prompts, "method.held_out": self.held_out_prompts} | paths


def _parsed(text: str) -> Spec:
    try:
        return parse(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
