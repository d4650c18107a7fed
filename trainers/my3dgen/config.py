"""Settings of a personal 3D head. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainers.config import DataConfig, OptimConfig, RunConfig, Settings


class My3DGenSettings(Settings):
    """A personal 3D head from about ten photos: anchors, then LoRA on the generator (My3DGen, arXiv 2307.05468)."""

    cameras: Path | None = None
    """JSON file with 25 numbers for each photo, by file name. None estimates the cameras."""

    refine: bool = True
    """Also correct the cameras while the anchors are searched."""

    space: Literal["w", "w+"] = "w"
    """One latent for all layers of the generator, or one for each."""

    anchor_steps: PositiveInt = 60
    """Steps of the search for anchors, for all photos at once."""

    anchor_lr: PositiveFloat = 0.2
    """Peak rate of the anchors' latents, in deviations."""

    together: NonNegativeFloat = 3.0
    """How strongly the anchors are held to what they share, since all photos show one person. 0 lets each photo be
    anybody."""

    anchor_side: NonNegativeInt = 32
    """Pixels in a row that each step of the search compares, without super-resolution: every second of 64, say,
    beginning at another one every time. It divides the generator's rendered side; larger ones count as that. 0 compares
    finished pictures, which takes several times as long."""

    patch: NonNegativeInt = 32
    """Side in rendered pixels of the part of the photos that each step looks at, somewhere else every time: 8 or more.
    0, or the whole side, looks at whole photos, which takes longer."""

    r: PositiveInt = 1
    """Rank parameter; a 3 x 3 convolution's change has rank 3 r in the published form."""

    alpha: PositiveFloat = 1.0
    """Scale of the change: alpha / r."""

    form: Literal["published", "plain", "loralib"] = "published"
    """How a convolution's weight is seen as a matrix."""

    styles: bool = True
    """Also change the styles' fully connected layers."""

    extras: bool = True
    """Also train biases, noise strengths and the constant, as published."""

    decoder: bool = True
    """Also train the decoder, without which colours that no head of the generator has cannot be learned. In the
    publication it is frozen."""

    whole_rate: PositiveFloat = 0.3
    """Factor on the learning rate of weights that are trained whole: extras, decoder, and all of full fine-tuning. In
    the publication it is 1."""

    full: bool = False
    """Train every weight but the mapping's, as a baseline. The result is as large as the generator."""

    symmetry: NonNegativeFloat = 0.0
    """Weight of the agreement of both sides; 1 is usual for photos, 0.3 for pixels. It helps with sides that no photo
    shows, and it harms one-sided marks: scars, beauty spots, partings."""

    symmetry_every: PositiveInt = 4
    """Steps between two uses of the symmetry of pixels or identity."""

    symmetry_form: Literal["photos", "pixels", "identity"] = "photos"
    """photos: every photo is also learned from mirrored, as seen from the other side; the search takes twice as long.
    pixels: views from both sides, where they can agree. identity: features of such views, as published: of
    method.arcface, or of the shipped network, which knows the procedural heads of the shipped generator and no photos
    of people."""

    symmetry_temperature: Annotated[float, Ge(1e-3), Le(100.0)] = 0.25
    """Differences between both sides well above it are left alone."""

    identity: NonNegativeFloat = 0.0
    """Weight of the agreement of identity between what is made and the photo, in features of method.arcface or else of
    the shipped network of heads."""

    identity_every: PositiveInt = 4
    """Steps between two uses of the identity, which needs whole pictures."""

    arcface: Path | None = None
    """Weights of an ArcFace network of your own (IR or IR-SE, such as model_ir_se50.pth): also checks that all photos
    show one person. None takes the shipped network of heads, where the generator is a shipped one."""

    lpips: Path | None = None
    """Weights of LPIPS of your own, AlexNet or VGG16: takes the place of the pyramid of differences in the tuning, as
    published."""

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        """Refuse settings of a symmetry that is off."""
        names = ("symmetry_every", "symmetry_form", "symmetry_temperature")
        changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if changed and not self.symmetry:
            raise ValueError(f"symmetry=0 leaves {', '.join(changed)} without effect; leave out one or the other")
        read = {"photos": (), "pixels": names, "identity": ("symmetry_every",)}[self.symmetry_form]
        unread = [name for name in changed if name != "symmetry_form" and name not in read]
        if unread:
            raise ValueError(f"symmetry_form={self.symmetry_form} leaves {', '.join(unread)} without effect; leave out")
        if self.identity_every != type(self).model_fields["identity_every"].default and not self.identity:
            raise ValueError("identity=0 leaves identity_every without effect; leave out one or the other")
        low_rank = ("r", "alpha", "form", "styles", "extras", "decoder")
        idle = [name for name in low_rank if getattr(self, name) != type(self).model_fields[name].default]
        if idle and self.full:
            raise ValueError(f"full leaves {', '.join(idle)} without effect; leave out one or the other")
        rated = self.whole_rate != type(self).model_fields["whole_rate"].default
        if rated and not (self.full or self.extras or self.decoder):
            raise ValueError("without extras and decoder, whole_rate has no effect; leave it out")
        if 0 < self.patch < 8:
            raise ValueError(f"patch={self.patch} is too small to see anything; give 8 or more, or 0 for whole photos")
        if self.cameras is None and not self.refine:
            raise ValueError("refine=False has no effect without cameras, which are then searched; give a camera file")
        return self


class My3DGenData(DataConfig):
    """The photos a head is made from."""

    batch_size: PositiveInt = 2
    """Photos per step (per process)."""


class My3DGenOptim(OptimConfig):
    """How long and how fast to train."""

    steps: PositiveInt = 200
    """Optimizer steps in all, counted from the very start, also after a resume."""

    lr: PositiveFloat = 8e-3
    """Peak learning rate of AdamW, of low-rank matrices; weights trained whole take method.whole_rate of it."""

    warmup: NonNegativeInt = 10
    """Steps over which the learning rate rises linearly to its peak."""


class My3DGenRun(RunConfig[My3DGenSettings]):
    """Everything that decides a run."""

    # A generator of heads reads no captions, draws in one step, and a mirrored head is another one.
    unread: ClassVar[tuple[str, ...]] = ("data.prompt", "data.flip", "watch.preview_prompts", "watch.preview_steps")

    model: str = "heads"
    """Generator: a folder with generator.safetensors and config.json, as lrdiff triplane import makes."""

    data: My3DGenData = My3DGenData()  # pyright: ignore[reportIncompatibleVariableOverride]
    """What to learn from."""

    optim: My3DGenOptim = My3DGenOptim()  # pyright: ignore[reportIncompatibleVariableOverride]
    """How long and how fast to train."""

    def find_model(self) -> Path:
        """Return the folder of the generator."""
        from lrdiff.triplane.store import find

        return find(self.model)

    def files(self) -> dict[str, Path]:
        """Return further files that decide the run."""
        own = {name: getattr(self.method, name) for name in ("cameras", "arcface", "lpips")}
        return {f"method.{name}": path for name, path in own.items() if path is not None}
