"""Settings shared by the adapters that are trained by the denoising loss, and those of tensor-lora. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainers.config import Settings

Targets = Literal["attention", "attention+ff", "attention+ff+conv"]


class PictureSettings(Settings):
    """What every method that learns from pictures in the denoiser's loss has in common."""

    min_snr: NonNegativeFloat = 0.0
    """Min-SNR loss weighting (arXiv 2303.09556) with this gamma, usually 5; 0 weights all timesteps alike."""

    buckets: bool = False
    """Keep the shape of pictures: crop each to the nearest of several sizes instead of to a square. Batches then hold
    one size each, and the last of a size may be smaller."""

    prior_prompt: str = ""
    """Preserve what the model makes of this prompt, usually the caption without the rare word, "a photo of a mug"."""

    prior_count: PositiveInt = 20
    """How many images of `prior_prompt` the untouched model draws at the start of the run."""

    prior_steps: PositiveInt = 20
    """Sampling steps of each of them."""

    prior_weight: PositiveFloat = 1.0
    """Weight of their loss beside that of the pictures."""

    guidance: NonNegativeFloat = 3.0
    """How strongly previews and the images of `prior_prompt` follow their words; 1 switches guidance off. 3 suits toys;
    5 to 7 is usual for Stable Diffusion, and 1 for FLUX.1, which is told its own guidance."""

    ema: Annotated[float, Ge(0.0), Le(0.99999)] = 0.0
    """Decay of a moving average of the adapter, usually 0.99; 0 for none. The average is measured, shown and saved."""

    patience: NonNegativeInt = 0
    """End the run when the validation loss has not fallen in this many evaluations; 0 never. Needs data.validation."""

    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""

    compile: Literal["off", "inductor", "eager"] = "off"
    """Compile the denoiser with torch.compile. eager only traces it, to see whether a model can be compiled."""

    @model_validator(mode="after")
    def _prior_acts(self) -> Self:
        """Refuse settings of a prior that is not preserved."""
        names = ("prior_count", "prior_steps", "prior_weight")
        changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
        if changed and not self.prior_prompt:
            raise ValueError(f"prior_prompt='' leaves {', '.join(changed)} without effect; leave out one or the other")
        return self


class DenoiseSettings(PictureSettings, ABC):
    """What every adapter trained by the denoising loss has in common."""

    adapter: ClassVar[str]
    """peft's name of the adapter kind, in lower case."""

    targets: Targets = "attention"
    """Which layers of the denoiser are adapted: attention projections, also feed-forward, also convolutions."""

    @abstractmethod
    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""


class TensorLoraSettings(DenoiseSettings):
    """Tensor-ring transform of the layer's input plus a tensor-ring or low-rank residual (arXiv 2501.08727).

    Differs from the paper: its TLoRA (2, 6) is transform_rank 2, residual ring, r 6, alpha 1. The defaults here have a
    third of the numbers on `toys`, and came out as well on the shipped subjects (DECISION 43).
    """

    adapter: ClassVar[str] = "tensor_lora"

    transform_rank: NonNegativeInt = 1
    """Ring rank of the transform T in `W0 T + s D`; 1 is a Kronecker product, 0 switches the transform off."""

    residual: Literal["ring", "lora", "none"] = "lora"
    """Form of the residual D: a tensor ring, plain LoRA factors, or none."""

    r: PositiveInt = 1
    """Rank of the residual. A ring of rank R is a LoRA of rank R*R with tensorised factors."""

    alpha: PositiveFloat = 4.0
    """Scale of the residual: s = alpha / sqrt(r)."""

    transform_lr: PositiveFloat = 1.0
    """Learning rate of the transform, as a factor on optim.lr, which is the residual's."""

    init: Literal["broken-symmetry", "paper"] = "broken-symmetry"
    """Start of a transform of rank 2 or more. Both are the exact identity; with the paper's all ring slices stay equal
    for ever. Also decides the spread of a ring residual."""

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse settings of a part that is switched off. `TensorLoraConfig` does too, but only once torch is there."""
        off: dict[str, tuple[str, ...]] = {
            "residual='none'": ("r", "alpha") if self.residual == "none" else (),
            "transform_rank=0": ("transform_lr",) if self.transform_rank == 0 else (),
            # A ring of rank 1 has one slice, so both starts are the same.
            f"transform_rank={self.transform_rank} with residual={self.residual!r}": (
                ("init",) if self.transform_rank < 2 and self.residual != "ring" else ()
            ),
        }
        for switch, names in off.items():
            changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
            if changed:
                raise ValueError(f"{switch} leaves {', '.join(changed)} without effect; leave out one or the other")
        if self.residual == "none" and self.transform_rank == 0:
            raise ValueError("transform_rank=0 with residual='none' leaves nothing to train; switch one of them on")
        return self

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from lrdiff.tensor_lora import TensorLoraConfig

        # Where there is no residual, the config refuses settings of one; its defaults are the paper's, not these.
        residual: dict[str, Any] = {} if self.residual == "none" else {"r": self.r, "alpha": self.alpha}
        return TensorLoraConfig(
            target_modules=layers,
            transform_rank=self.transform_rank,
            residual=self.residual,
            init=self.init,
            **residual,
        )
