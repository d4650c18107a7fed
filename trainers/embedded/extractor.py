"""Training of the extractor: random bits are written into pictures, distorted, and read.

Extractor and marks learn together, first from strong marks in whole pictures, then from ever fainter ones in ever more
damaged pictures. Marks are of three kinds: textures (`marks.py`), which are read first, kernels that are stamped where
the picture has something (`stamps.py`), and filters of a decoder's own activations (`keyed.py`), which a LoRA on that
decoder can write.

Differs from HiDDeN (arXiv 1807.09937) and Stable Signature (arXiv 2303.15435): their embedder is a network that takes
the message, ours are banks with two entries for each bit, which are read above chance after a hundred steps where that
pair stays at chance for many hundreds. They are only teachers: what is published is the extractor, and a decoder is
later tuned against it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.decoders import load_vae
from lrdiff.rng import stream
from lrdiff.watermark import distortions
from lrdiff.watermark.distortion_config import DistortionConfig
from lrdiff.watermark.distortions import Distortions
from lrdiff.watermark.extractor import Extractor
from lrdiff.watermark.jpeg import jpeg
from lrdiff.watermark.views import rotate
from trainers.config import Settings
from trainers.embedded.few_bits import FewBits
from trainers.embedded.keyed import FRAME, Keyed, draw
from trainers.embedded.marks import Marks
from trainers.embedded.sources import Sources
from trainers.embedded.stamps import Stamps
from trainers.method import Batch, Method, Metrics, ParamGroup

EVALUATED = 32
KINDS = ("textures", "stamps", "keyed")
"""Of marks."""

log = logging.getLogger(__name__)


class ExtractorConfig(Settings):
    """How an extractor is built and trained."""

    scenes: Path
    """Folder of rendered scenes."""

    photos: Path | None = None
    """Folder of photos, subfolders included; none trains on scenes and textures alone."""

    bits: PositiveInt = 48
    """Bits to read."""

    width: PositiveInt = 64
    """Channels of the extractor."""

    strides: Annotated[tuple[PositiveInt, ...], MinLen(2)] = (2, 2, 1, 1, 2, 1, 1, 1, 1)
    """Stride of every block of the extractor, which also says how many there are."""

    batch_size: PositiveInt = 32
    """Pictures per step."""

    sides: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (64,)
    """Sides of the pictures; every batch takes one of them. Divisible by 4."""

    textures: PositiveInt = 256
    """Dead-leaves pictures to cut from."""

    texture_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.15
    """Share of dead-leaves pictures in a batch."""

    photo_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.25
    """Share of photos in a batch, when there are any; the rest are scenes."""

    distortions: DistortionConfig = DistortionConfig()
    """Between embedder and extractor, at their full strength."""

    psnr: tuple[PositiveFloat, PositiveFloat] = (8.0, 32.0)
    """Of the marked pictures in dB: at the beginning, and at full difficulty."""

    tile: PositiveInt = 32
    """Side of the marks' textures, in pixels: textures of period n share the frequencies k / n, so small ones get in
    each other's way."""

    smooth: NonNegativeFloat = 1.0
    """Standard deviation in pixels of the Gaussian that textures are smoothed with."""

    texture_rate: PositiveFloat = 10.0
    """Learning rate of the textures, kernels and filters, as a multiple of the run's."""

    stamp_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """Share of the pictures that are marked with stamped kernels; the rest carry textures."""

    stamp_maps: PositiveInt = 8
    """Maps of the picture that say where kernels are stamped."""

    stamp_side: PositiveInt = 7
    """Side of a kernel, in pixels; odd."""

    decoder: Path | None = None
    """Folder of an autoencoder whose decoder's own activations are also filtered into marks; none leaves these out."""

    keyed_share: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """Share of the pictures in a batch that are such a decoder's and carry such marks, when there is one."""

    keyed_pictures: PositiveInt = 2560
    """Pictures that the decoder makes: encoded cuts from the same sources as all others."""

    settle: NonNegativeInt = 6000
    """Steps after which the normalisations no longer follow the batch: pictures are read one by one later."""

    master: Annotated[float, Gt(0.5), Le(1.0)] = 0.9
    """Share of bits that must be read of each kind of mark, on average over recent steps, for the task to get harder.
    Low values let a part of the bits be given up for good."""

    ramp: PositiveInt = 4000
    """Steps, while mastered, from easy to full difficulty: the distortions and the PSNR rise together."""


class TrainExtractor(Method[ExtractorConfig]):
    """Binary cross-entropy of the logits, with a difficulty that follows what is mastered."""

    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__(config)
        self.extractor = Extractor(config.bits, config.width, len(config.strides) - 1, config.strides)
        self.extractor.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        # Random weights leave some directions nearly unread. What is not read sends no gradient back, so the network
        # never says anything there: they stay unread for good (measured: 5 of 48).
        nn.init.orthogonal_(self.extractor.head.weight)
        self.marks = Marks(config.bits, config.tile, config.smooth)
        self.stamps = Stamps(config.bits, config.stamp_maps, config.stamp_side)
        self.distortions = Distortions(config.distortions)
        self.sources = Sources(config.scenes, config.photos, config.textures, config.texture_share, config.photo_share)
        self.keyed: Keyed | None = None
        if config.decoder is not None:
            self._prepare_decoder(config.decoder)
        for name in ("difficulty", "seen"):
            self.register_buffer(name, torch.tensor(0.0))
        self.register_buffer("mastered", torch.full((len(KINDS),), 0.5))
        self.few_bits = FewBits(config.bits)

    def _prepare_decoder(self, folder: Path) -> None:
        """Keep many pictures of a decoder and what its last block saw, which is all that training needs of it."""
        c = self.config
        vae, rng = load_vae(folder), stream(0, "keyed")
        side = max(c.sides) + 4 * FRAME  # a frame more than is used, for the layers before the last block
        side += -side % 2 ** (len(vae.config.block_out_channels) - 1)
        log.info("encoding %d pictures for the decoder's marks", c.keyed_pictures)
        self.drawn = draw(vae, lambda count: self.sources.cut(count, side, rng), c.keyed_pictures)
        self.keyed = Keyed(self.drawn.maps.shape[1], c.bits)

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw pictures, those of a decoder with their maps where there is one, and bits for all."""
        c = self.config
        side = c.sides[int(torch.randint(0, len(c.sides), (), generator=rng))]
        keyed = 0 if self.keyed is None else round(c.batch_size * c.keyed_share)
        bits = torch.randint(0, 2, (c.batch_size, c.bits), generator=rng).float()
        batch = {"images": self.sources.cut(c.batch_size - keyed, side, rng), "bits": bits}
        if keyed:
            batch["drawn"], batch["maps"] = self._drawn(keyed, side, rng)
        return batch

    def _drawn(self, count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cut pictures of the decoder and their maps, away from the border."""
        pictures = self.drawn.pictures
        chosen = torch.randint(0, max(1, len(pictures) - EVALUATED), (count,), generator=rng)
        last = [(n - side - FRAME) // 2 for n in pictures.shape[-2:]]
        top, left = (2 * int(torch.randint(FRAME // 2, n + 1, (), generator=rng)) for n in last)
        return self.drawn.cut(chosen, top, left, side, side)

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Mark, distort, read."""
        images: Tensor = batch["images"].contiguous(memory_format=torch.channels_last)
        bits: Tensor = batch["bits"]
        self._settle(float(self.get_buffer("seen")) >= self.config.settle)
        self.get_buffer("seen").add_(1)
        difficulty = float(self.get_buffer("difficulty"))
        easy, hard = self.config.psnr
        stamped = torch.rand(len(images), generator=rng) < self.config.stamp_share
        keyed = torch.arange(len(bits)) >= len(images)
        psnr = easy + difficulty * (hard - easy)
        marked = self.marked(images, bits[: len(images)], psnr, stamped, rng)
        carried = torch.ones_like(bits)
        if self.keyed is not None and "drawn" in batch:
            carried[len(images) :] = self.few_bits.draw(len(bits) - len(images), rng).to(bits.device)
            own = bits[len(images) :], psnr, carried[len(images) :]
            written = self.keyed(batch["drawn"], batch["maps"], *own)
            marked = torch.cat([marked, written])
        logits = self.extractor.raw(self.distortions(marked, rng, difficulty))
        read = ((logits > 0) == (bits > 0.5)).float()
        whole = carried.amin(1).cpu() > 0
        right = read.mean(1)
        metrics = {"accuracy": right[whole].mean(), "difficulty": self.get_buffer("difficulty").clone()}
        if bool(keyed.any()):
            self.few_bits.note(read[keyed], carried[keyed])
            metrics["few_bits"] = self.few_bits.get_buffer("few").clone()
        stamped = torch.cat([stamped, keyed[len(images) :]])
        for at, (name, chosen) in enumerate(zip(KINDS, (~stamped, stamped & ~keyed, keyed & whole), strict=True)):
            if bool(chosen.any()):
                metrics[f"accuracy_{name}"] = right[chosen.to(right.device)].mean()
                self.get_buffer("mastered")[at].lerp_(metrics[f"accuracy_{name}"], 0.05)
        # Every picture counts the same, however many bits it carries.
        losses = F.binary_cross_entropy_with_logits(logits, bits, reduction="none") * carried
        return (losses.sum(1) / carried.sum(1)).mean(), metrics

    def marked(self, images: Tensor, bits: Tensor, psnr: float, stamped: Tensor, rng: torch.Generator) -> Tensor:
        """Write bits into images: with stamps where the bool tensor `stamped` [B] says so, with textures elsewhere."""
        chosen = stamped.to(images.device)[:, None, None, None]
        textured = self.marks(images, bits, psnr, rng)
        return torch.where(chosen, self.stamps(images, bits, psnr), textured) if bool(stamped.any()) else textured

    def _settle(self, settled: bool) -> None:
        """Let normalisations follow the batch, or use what they have seen, as when pictures are read one by one."""
        for module in self.extractor.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(self.training and not settled)

    def stepped(self, step: int) -> None:
        """Make the task harder where it is mastered, with every kind of mark."""
        c = self.config
        there = (c.stamp_share < 1, c.stamp_share > 0, self.keyed is not None and c.keyed_share > 0)
        if float(self.get_buffer("mastered")[torch.tensor(there)].min()) >= c.master:
            self.get_buffer("difficulty").add_(1.0 / self.config.ramp).clamp_(max=1.0)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Everything is trained: inner matrices with orthogonalised steps, vectors without decay."""
        matrices = [p for p in self.extractor.parameters() if p.ndim > 1]
        return [
            ParamGroup("inner matrices", matrices[1:], orthogonal=True),
            ParamGroup("first matrix", matrices[:1]),
            ParamGroup("vectors", [p for p in self.extractor.parameters() if p.ndim <= 1], decay=False),
            ParamGroup("textures", [self.marks.textures], lr_scale=self.config.texture_rate, decay=False),
            ParamGroup("kernels", [self.stamps.kernels], lr_scale=self.config.texture_rate, decay=False),
            ParamGroup("places", tuple(self.stamps.maps.parameters()), decay=False),
            *self._keyed_groups(),
        ]

    def _keyed_groups(self) -> list[ParamGroup]:
        if self.keyed is None:
            return []
        return [ParamGroup("filters", [self.keyed.filters], lr_scale=self.config.texture_rate, decay=False)]

    def artifact(self) -> None:
        """Nothing: `make` whitens, calibrates and writes the file."""

    @torch.no_grad()
    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the bits read from held-out scenes with each kind of mark at the final PSNR, after distortions.

        `directions` is the share of independent combinations of bits that are read at all.
        """
        images = self.sources.held_out(EVALUATED)
        count = len(images)
        bits = torch.randint(0, 2, (count, self.config.bits), generator=rng).float()
        device = self.marks.textures.device
        training = self.training
        self.eval()
        psnr = self.config.psnr[1]
        written: dict[str, Tensor] = {}
        for kind, stamped in (("textures", False), ("stamps", True)):
            which = torch.full((count,), stamped)
            written[kind] = self.marked(images.to(device), bits.to(device), psnr, which, rng)
        if self.keyed is not None:
            known = len(self.drawn.pictures)
            drawn, maps = self.drawn.inner(torch.arange(max(0, known - count), known))
            written["keyed"] = self.keyed(drawn.to(device), maps.to(device), bits[: len(drawn)].to(device), psnr)
        found = {}
        for kind, marked in written.items():
            for name, view in views(marked).items():
                right = (self.extractor.raw(view) > 0).cpu() == (bits[: len(view)] > 0.5)
                found[f"{kind}_{name}"] = float(right.float().mean())
        found["directions"] = self.extractor.directions() / self.config.bits
        self.train(training)
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the running statistics and the difficulty."""
        return dict(self.named_buffers())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the running statistics and the difficulty."""
        for name, buffer in self.named_buffers():
            buffer.copy_(state[name])


def views(images: Tensor) -> dict[str, Tensor]:
    """Return images [B, 3, H, W] in [-1, 1] after single distortions, by name."""
    pixels = (images + 1.0) / 2.0
    count, _, height, width = pixels.shape
    small = [round(n * 0.3**0.5) for n in (height, width)]
    part = [round(n * 0.1**0.5) for n in (height, width)]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    half = [round(n * 0.5**0.5) for n in (height, width)]
    ones = torch.ones(count, device=images.device)
    grey = pixels.mean((1, 2, 3), keepdim=True)
    bright = distortions.adjust(pixels, torch.zeros_like(pixels), 1.5)
    changed = {
        "clean": pixels,
        "jpeg80": jpeg(pixels, 80 * ones),
        "jpeg50": jpeg(pixels, 50 * ones),
        "crop10": pixels[:, :, top : top + part[0], left : left + part[1]],
        "resize30": F.interpolate(pixels, small, mode="bilinear", align_corners=False, antialias=True),
        "rotate25": rotate(pixels, 25 * ones),
        "bright": bright,
        "contrast": distortions.adjust(pixels, grey, 1.5),
        "blur1": distortions.blur(pixels, ones),
        "combined": jpeg(bright[:, :, : half[0], : half[1]], 80 * ones),
    }
    return {name: 2.0 * value - 1.0 for name, value in changed.items()}
