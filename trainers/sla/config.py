"""Settings of the fine-tuning of sparse-linear attention. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainers.config import Settings
from trainers.denoise.config import PictureSettings, Targets


def _number(value: Any) -> Any:
    """Flags and forms bring text, of which a choice between numbers makes nothing by itself."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


BlockSize = Annotated[Literal[16, 32, 64, 128], BeforeValidator(_number)]


class Sparsity(Settings):
    """Which key blocks softmax attention keeps, and what becomes of the others."""

    topk: Annotated[float, Gt(0.0), Le(1.0)] = 0.05
    """Share of key blocks that a query block attends to by softmax."""

    skip: Annotated[float, Ge(0.0), Lt(1.0)] = 0.10
    """Share of key blocks that are left out altogether. Only with scope marginal."""

    scope: Literal["marginal", "noncritical", "all"] = "marginal"
    """What the linear branch sees: all blocks but critical and skipped ones (the paper), all but critical ones, or all.
    """

    block_q: BlockSize = 128
    """Tokens in a block of queries."""

    block_k: BlockSize = 64
    """Tokens in a block of keys."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        """Refuse shares that overlap, and a share without effect."""
        if self.topk < 1.0 and self.topk + self.skip > 1.0:
            raise ValueError(f"topk={self.topk:g} and skip={self.skip:g} overlap; lower one of them")
        if self.scope != "marginal" and self.skip != Sparsity.model_fields["skip"].default:
            raise ValueError(f"scope={self.scope!r} leaves skip without effect; leave out one or the other")
        return self


class SlaSettings(Sparsity, PictureSettings):
    """Sparse-linear attention in place of self- and joint attention, fine-tuned to keep quality (arXiv 2509.24006).

    Differs from the paper: the default loss is that of the authors' later work, the distance to the velocity of the
    same model with full attention; only low-rank updates of the projections are trained unless `train` is "all"; and
    the linear branch also takes the place of a share of the softmax branch, unless `mix` is 0.
    """

    feature_map: Literal["softmax", "elu", "relu"] = "softmax"
    """Feature map of the linear branch."""

    mix: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """Share of what softmax leaves out that each head takes from the linear branch instead, at the start; it learns.
    0 has no shares: the paper."""

    ramp: NonNegativeInt = 0
    """Steps over which the share of critical blocks falls to `topk`; 0 begins with it."""

    ramp_from: Annotated[float, Gt(0.0), Le(1.0)] = 0.5
    """Share of critical blocks at the first step of the ramp."""

    loss: Literal["velocity", "denoise"] = "velocity"
    """velocity: distance to what the model predicts with full attention. denoise: the model's own training loss."""

    train: Literal["projections", "lora", "all"] = "lora"
    """What learns: the linear branch's projections only, also a LoRA on the `targets`, or all weights."""

    projection_lr: PositiveFloat = 0.1
    """Learning rate of the projections where more is trained than these, as a factor on optim.lr."""

    targets: Targets = "attention"
    """Which layers get a LoRA: attention projections, also feed-forward, also convolutions."""

    r: PositiveInt = 16
    """Rank of the LoRA."""

    alpha: PositiveInt = 16
    """Scale of the LoRA: s = alpha / r."""

    @model_validator(mode="after")
    def _sparse_settings_act(self) -> Self:
        """Refuse a ramp that does not fall and settings without effect."""
        if self.ramp and self.ramp_from <= self.topk:
            raise ValueError(f"ramp_from={self.ramp_from:g} is not above topk={self.topk:g}: there is nothing to ramp")
        if self.ramp and self.ramp_from < 1.0 and self.ramp_from + self.skip > 1.0:
            raise ValueError(f"ramp_from={self.ramp_from:g} and skip={self.skip:g} overlap; lower one of them")
        off = {
            "ramp=0": ("ramp_from",) if not self.ramp else (),
            f"train={self.train!r}": {
                "lora": (),
                "all": ("r", "alpha", "targets"),
                "projections": ("r", "alpha", "targets", "projection_lr"),
            }[self.train],
        }
        for switch, names in off.items():
            changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
            if changed:
                raise ValueError(f"{switch} leaves {', '.join(changed)} without effect; leave out one or the other")
        return self

    def topk_at(self, step: int) -> float:
        """Return the share of critical blocks at a step, from 0: a line from `ramp_from` to `topk`."""
        if step >= self.ramp:
            return self.topk
        return self.ramp_from + (self.topk - self.ramp_from) * step / self.ramp

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration of the LoRA for these layer names."""
        from peft import LoraConfig

        return LoraConfig(target_modules=layers, r=self.r, lora_alpha=self.alpha, bias="none")
