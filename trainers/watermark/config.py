"""Settings of the watermark. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from lrdiff.assets import MODELS
from trainers.config import DataConfig, OptimConfig, RunConfig, Settings

Share = Annotated[float, Ge(0.0), Le(1.0)]
Accuracy = Annotated[float, Gt(0.5), Lt(1.0)]


class WatermarkSettings(Settings):
    """A key's bits in every picture that the decoder makes, by LoRA on its last block (EW-LoRA, arXiv 2410.20202)."""

    key: str = ""
    """Id of a registered key. None draws new bits and registers them; the id is then written here."""

    owner: Annotated[str, Len(min_length=1)] = "lrdiff train"
    """Whose key it is, where a new one is drawn."""

    registry: str = ""
    """Registry of keys: an SQLite file, or postgresql://USER@HOST/NAME. None takes the user's own."""

    key_file: Path | None = None
    """File of the secret that opens the registry. None takes the user's own."""

    bits_file: Path | None = None
    """Text file with the bits, for a key that is in no registry. Its name without ending is written down as the key's
    id; the bits are written nowhere."""

    extractor: Path | None = None
    """The extractor that will read the mark; it stays as it is. None takes the shipped one."""

    target: Annotated[str, Len(min_length=1)] = "decoder-last-block"
    """Where the mark goes: decoder-last-block, or a regular expression of layer names of the autoencoder."""

    r: PositiveInt = 4
    """Rank of every layer's change."""

    alpha: PositiveFloat = 32.0
    """Scale of the change: s = alpha / r."""

    image_loss: Literal["masked", "watson", "lpips"] = "masked"
    """How a difference to the unmarked picture is measured; lpips needs weights of your own."""

    lpips: Path | None = None
    """Weights of LPIPS for image_loss lpips, AlexNet or VGG16: the state of lpips.LPIPS as .pth or .safetensors."""

    gain: PositiveFloat = 1.0
    """Factor on the extractor's logits in the bit loss; a larger one is sooner content with a bit."""

    focus: NonNegativeFloat = 1.0
    """How much more the bits count that are read worst: the weight of a bit is its own loss to this power. 0 counts all
    alike, as in the paper, and gives some of them up."""

    weighting: Literal["dlws", "dlws-paper", "fixed"] = "dlws"
    """Balance of both losses: decided anew after every step (dlws), as in the paper, or fixed."""

    image_weight: Annotated[float, Gt(0.0), Lt(1.0)] = 0.5
    """Weight of the picture with weighting fixed; the bits have the rest."""

    distort: Share = 0.4
    """How often and how strongly pictures are distorted before the extractor reads them; 0 never, 1 as its own training
    was at the end."""

    margin: NonNegativeInt = 8
    """Pixels at each border that are not read while learning. Zero padding tells a decoder where the border is, and a
    mark that sits there is easily written and lost with the first crop; 0 reads whole pictures."""

    target_psnr: Annotated[float, Ge(20.0), Le(60.0)] = 35.0
    """Goal: PSNR against the unmarked decoder, in dB. Also the highest that dlws asks for."""

    target_accuracy: Accuracy = 0.998
    """Goal: share of bits that are read right from generated pictures as they are."""

    target_distorted: Accuracy = 0.97
    """Goal: share of bits that are read right after distortions. Also the highest that dlws asks for."""

    patience: NonNegativeInt = 2
    """Evaluations in a row in which all goals must be met before the run ends early; 0 uses all steps."""

    generated: PositiveInt = 192
    """Pictures that the base model makes to learn from, as latents; they are kept in the user's cache folder."""

    held_out: PositiveInt = 32
    """Generated pictures that are only measured on."""

    prompts: Path | None = None
    """Text file with a prompt on each line for the generated pictures. None takes captions of the toy world."""

    sampling_steps: PositiveInt = 20
    """Sampling steps of a generated picture."""

    guidance: NonNegativeFloat = 3.0
    """How strongly the generated pictures follow their prompts."""

    @field_validator("key")
    @classmethod
    def _no_bits(cls, value: str) -> str:
        if len(value) >= 12 and not set(value) - {"0", "1"}:
            # The value itself is kept out of the message.
            raise ValueError(
                "these are bits, and a run writes its settings down; give a registered key's id, or put the bits into "
                "a file and give method.bits_file"
            )
        return value

    @field_validator("registry")
    @classmethod
    def _no_password(cls, value: str) -> str:
        _, at, _ = value.partition("@")
        if at and ":" in value.partition("://")[2].partition("@")[0]:
            raise ValueError("holds a password, and a run writes its settings down; use ~/.pgpass or PGPASSWORD")
        return value

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse settings that another one leaves without effect."""
        off: dict[str, tuple[str, ...]] = {
            "bits_file": ("key", "owner", "registry", "key_file") if self.bits_file is not None else (),
            "key": ("owner",) if self.key else (),
            f"image_loss={self.image_loss}": ("lpips",) if self.image_loss != "lpips" else (),
            f"weighting={self.weighting}": ("image_weight",) if self.weighting != "fixed" else (),
        }
        for switch, names in off.items():
            changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
            if changed:
                raise ValueError(f"{switch} leaves {', '.join(changed)} without effect; leave out one or the other")
        if self.image_loss == "lpips" and self.lpips is None:
            raise ValueError("image_loss=lpips has no weights: give method.lpips, or use masked, which needs none")
        return self

    @property
    def extractor_path(self) -> Path:
        """The extractor's file or folder."""
        return self.extractor or MODELS / "extractor"


class WatermarkOptim(OptimConfig):
    """How long and how fast to train."""

    steps: PositiveInt = 1000
    """Optimizer steps at most, counted from the very start, also after a resume."""

    lr: PositiveFloat = 3e-3
    """Peak learning rate of AdamW."""


class WatermarkRun(RunConfig[WatermarkSettings]):
    """Everything that decides a run."""

    needs_images: ClassVar[bool] = False

    optim: WatermarkOptim = WatermarkOptim()  # pyright: ignore[reportIncompatibleVariableOverride]
    """How long and how fast to train."""

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse settings of pictures that are not there, and of captions, which this method does not read."""
        if self.data.prompt != DataConfig().prompt:
            raise ValueError("data.prompt has no effect here: encoded photos need no caption; see method.prompts")
        if self.data.flip and not self.has_images:
            raise ValueError("data.flip has no effect without data.images: generated pictures are not mirrored")
        if not self.watch.evaluate_every and self.method.patience != WatermarkSettings().patience:
            raise ValueError("watch.evaluate_every=0 leaves method.patience without effect: goals are never measured")
        return self

    def files(self) -> dict[str, Path]:
        """Return further files that decide the run. The bits are none of them: a hash of 48 bits can be undone."""
        found = {"method.extractor": self.method.extractor_path}
        own = {"method.prompts": self.method.prompts, "method.lpips": self.method.lpips}
        return found | {name: path for name, path in own.items() if path}

    def settled(self) -> Self:
        """Draw and register a new key where none is given."""
        if self.method.key or self.method.bits_file is not None:
            return self
        from trainers.watermark.key import draw

        # The owner is in the registry now; beside the id of a key that is there it would say nothing.
        update = {"key": draw(self.method), "owner": WatermarkSettings.model_fields["owner"].default}
        return self.model_copy(update={"method": self.method.model_copy(update=update)})
