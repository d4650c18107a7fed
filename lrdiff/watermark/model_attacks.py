"""Attacks by somebody who has more than a picture: many pictures, the autoencoder, a decoder, or the extractor."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.images import to_image, to_tensor
from lrdiff.rng import stream
from lrdiff.watermark.attacks import Family
from lrdiff.watermark.reading import Network

log = logging.getLogger(__name__)

BATCH = 8
NAMES = ("overwrite-pixels", "average", "re-encode", "swap", "overwrite-decoder", "fine-tune")
"""All of them, in the order of what they need."""
COUNTS = (10, 30, 100, 300)
"""How many pictures are averaged."""
SetChange = Callable[[Sequence[Image.Image], float], list[Image.Image]]


@dataclass(frozen=True, slots=True)
class SetAttack:
    """A change of a whole set of pictures of one key with a strength. See `lrdiff.watermark.attacks.Attack`."""

    name: str
    measure: str
    strengths: tuple[float, ...]
    aligned: bool
    knowledge: str
    change: SetChange
    family: Family = "model"

    def __call__(self, images: Sequence[Image.Image], strength: float) -> list[Image.Image]:
        """Return the changed pictures."""
        return self.change(images, strength)


@torch.no_grad()
def encode(vae: nn.Module, images: Tensor) -> Tensor:
    """Return the autoencoder's own latents (not scaled) of images [B, 3, H, W] in [-1, 1], without noise."""
    example = next(vae.parameters())
    found = cast(Any, vae).encode(images.to(example.device, example.dtype))
    return (found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents).float()


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Return images of the autoencoder's own latents, float32, unclamped."""
    example = next(vae.parameters())
    return cast(Any, vae).decode(latents.to(example.device, example.dtype)).sample.float()


@torch.no_grad()
def rendered(vae: nn.Module, latents: Tensor) -> list[Image.Image]:
    """Return the 8-bit pictures that a decoder makes of latents."""
    return [to_image(image) for part in latents.split(BATCH) for image in decode(vae, part)]


def latents_of(vae: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    """Return latents of pictures of one size.

    Raises:
        ShapeError: The sizes differ.
    """
    batch = _stacked(images)
    return torch.cat([encode(vae, part) for part in batch.split(BATCH)])


def through(encoder: nn.Module, decoder: nn.Module, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return pictures encoded by one autoencoder and decoded by another.

    Raises:
        ShapeError: The sizes differ, or are no multiple of the autoencoder's factor.
    """
    result = rendered(decoder, latents_of(encoder, images))
    if result[0].size != images[0].size:
        width, height = images[0].size
        raise ShapeError(
            f"the autoencoder makes {result[0].width} x {result[0].height} of pictures of {width} x {height}; "
            "give pictures as the model made them"
        )
    return result


def reencode(vae: nn.Module, strengths: tuple[float, ...] = (1, 2, 4)) -> SetAttack:
    """Send pictures through the public autoencoder, once or several times."""

    def change(images: Sequence[Image.Image], passes: float) -> list[Image.Image]:
        result = list(images)
        for _ in range(int(passes)):
            result = through(vae, vae, result)
        return result

    return SetAttack("re-encode", "passes", strengths, True, "the public autoencoder", change)


def swap(vae: nn.Module) -> SetAttack:
    """Decode with the public decoder instead of the marked one: nothing can survive.

    The latents of the marked pictures stand for those the model made.
    """

    def change(images: Sequence[Image.Image], _strength: float) -> list[Image.Image]:
        return through(vae, vae, images)

    return SetAttack("swap", "1 is swapped", (1,), True, "the model's files and the public decoder", change)


def overwrite(vae: nn.Module, other: nn.Module) -> SetAttack:
    """Encode with the public encoder and decode with a decoder that carries another key."""

    def change(images: Sequence[Image.Image], passes: float) -> list[Image.Image]:
        result = list(images)
        for _ in range(int(passes)):
            result = through(vae, other, result)
        return result

    return SetAttack(
        "overwrite-decoder", "passes", (1, 2), True, "the public encoder and a decoder marked with another key", change
    )


def overwrite_pixels(extractor: Network, key: str, strengths: tuple[float, ...] = (1, 2, 4)) -> SetAttack:
    """Move pixels, by at most `strength` of 255 levels, until the extractor reads another key.

    Projected gradient steps on the loss of the bits: what anybody can do who holds the extractor, so it must be kept.
    """
    wanted = torch.tensor([float(digit) for digit in key])
    if len(wanted) != extractor.bits:
        raise ConfigError(f"the other key has {len(key)} bits, the extractor reads {extractor.bits}")

    def change(images: Sequence[Image.Image], level: float) -> list[Image.Image]:
        result: list[Image.Image] = []
        # Sizes may differ, and pictures do not depend on each other: those in a row of one size go together.
        for _, run in itertools.groupby(images, key=lambda image: image.size):
            for part in _stacked(list(run)).split(BATCH):
                moved = _pushed(extractor, part, wanted.expand(len(part), -1), level * 2 / 255)
                result += [to_image(image) for image in moved]
        return result

    return SetAttack("overwrite-pixels", "levels of 255", strengths, True, "the extractor", change)


def _pushed(extractor: Network, start: Tensor, wanted: Tensor, bound: float, steps: int = 20) -> Tensor:
    device = extractor.get_buffer("mean").device
    start, wanted = start.to(device), wanted.to(device)
    moved = start.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = F.binary_cross_entropy_with_logits(extractor(moved), wanted, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() - 2.5 * bound / steps * slope.sign()
        moved = (start + (moved - start).clamp(-bound, bound)).clamp(-1, 1)
    return moved.cpu()


def average(counts: tuple[int, ...] = COUNTS) -> SetAttack:
    """Estimate the mark as the mean of what is fine in many pictures of one key, and subtract it.

    It finds the part of a mark that does not depend on the content (arXiv 2406.09026). Fine is what a Gaussian blur of
    2 pixels takes away.
    """

    def change(images: Sequence[Image.Image], count: float) -> list[Image.Image]:
        used = images[: int(count)]
        _stacked(images)
        if len(used) < count:
            raise ConfigError(f"averaging {count:g} pictures needs as many, there are {len(used)}")
        mark = np.mean([_fine(image) for image in used], axis=0)
        return [
            Image.fromarray((np.asarray(image, dtype=np.float64) - mark).round().clip(0, 255).astype(np.uint8))
            for image in images
        ]

    return SetAttack("average", "pictures averaged", counts, True, "many pictures of one key", change)


def _fine(image: Image.Image) -> Any:
    smooth = image.filter(ImageFilter.GaussianBlur(2.0))
    return np.asarray(image, dtype=np.float64) - np.asarray(smooth, dtype=np.float64)


def fine_tune(
    vae: nn.Module,
    marked: nn.Module,
    clean: Tensor,
    *,
    steps: tuple[float, ...] = (0, 10, 30, 100),
    lr: float = 1e-4,
    batch: int = 4,
    seed: int = 0,
) -> SetAttack:
    """Train the marked decoder on unmarked pictures for k steps, then make the pictures anew with it.

    The decoder learns to draw what the encoder saw (mean squared error, AdamW over all its weights), as in "Stable
    Signature is Unstable" (arXiv 2405.07145). Strength 0 is the marked decoder as it is. The latents of the given
    pictures stand for those the model made.

    Args:
        vae: The public autoencoder, for its encoder.
        marked: The autoencoder with the mark merged in; not changed.
        clean: Unmarked pictures [N, 3, H, W] in [-1, 1].
        steps: Numbers of steps, rising; the training goes on from one to the next.
        lr: Learning rate.
        batch: Pictures per step.
        seed: Of the order of pictures.
    """
    state: dict[str, Any] = {}

    def change(images: Sequence[Image.Image], wanted: float) -> list[Image.Image]:
        if not state or state["done"] > wanted:
            state.update(_start(marked, lr))
        latents = state.setdefault("latents", torch.cat([encode(vae, part) for part in clean.split(BATCH)]))
        for step in range(state["done"], int(wanted)):
            chosen = torch.randint(len(clean), (batch,), generator=stream(seed, "fine-tune", step))
            loss = F.mse_loss(decode(state["vae"], latents[chosen]), clean[chosen].to(latents.device))
            state["optimizer"].zero_grad()
            loss.backward()
            state["optimizer"].step()
            if (step + 1) % 50 == 0:
                log.info("fine-tuning the decoder: step %d, error %.5f", step + 1, float(loss.detach()))
        state["done"] = int(wanted)
        return through(vae, state["vae"], images)

    return SetAttack("fine-tune", f"steps at {lr:g}", steps, True, "the marked decoder, the encoder, pictures", change)


def _start(marked: nn.Module, lr: float) -> dict[str, Any]:
    copied = copy.deepcopy(marked).eval().float()
    decoder = cast(nn.Module, copied.decoder)
    decoder.requires_grad_(True)
    return {"vae": copied, "optimizer": torch.optim.AdamW(decoder.parameters(), lr=lr, weight_decay=0.0), "done": 0}


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    if len({image.size for image in images}) > 1:
        raise ShapeError("this attack needs pictures of one size; give the ones of one size only")
    return torch.stack([to_tensor(image) for image in images])
