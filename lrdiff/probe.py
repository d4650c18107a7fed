"""Probes: small networks that read attributes and identity from pictures of the toy world, or identity from heads.

Two of each come with the project, of different width and seed. One may take part in a choice, a reward or a loss; the
other then only measures, so that a figure is never read by the network it was optimised for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lrdiff.assets import MODELS
from lrdiff.errors import ModelError, ShapeError
from lrdiff.loading import alone

SIDE = 64
"""Pictures are read at this side, in pixels. At 128 a network of this depth sees too little of an object at once: at
half the side it learned to tell shapes from a fraction of the pictures."""


class Probe(nn.Module):
    """A small residual network with one linear head per attribute and one for identity.

    Attributes:
        classes: Attribute -> number of its values.
    """

    def __init__(self, widths: Sequence[int], classes: Mapping[str, int], identity: int = 64) -> None:
        """Build with random weights.

        Args:
            widths: Channels of each stage; every stage halves the side, the stem does so once more.
            classes: Attribute -> number of its values.
            identity: Dimensions of the identity embedding.
        """
        super().__init__()
        self.widths = tuple(widths)
        self.classes = dict(classes)
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.trunk = nn.Sequential(stem, *(Stage(into, out) for into, out in itertools.pairwise(widths)))
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], count) for name, count in classes.items()})
        self.embed = nn.Linear(widths[-1], identity)

    def features(self, images: Tensor) -> Tensor:
        """Return [B, C] features of images [B, 3, H, W] in [-1, 1], scaled to `SIDE` first where they are not.

        Raises:
            ShapeError: The images have other axes.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"a probe reads images [B, 3, H, W], not {list(images.shape)}")
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.trunk(images).mean((2, 3))

    def attributes(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits [B, values] of each attribute of the main object, and of the place."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def identity(self, images: Tensor) -> Tensor:
        """Return unit vectors [B, D]; the cosine of two tells how alike their subjects are."""
        return F.normalize(self.embed(self.features(images)), dim=-1)

    def describe(self) -> dict[str, object]:
        """Return what `load_probe` needs besides the weights."""
        return {"widths": list(self.widths), "classes": self.classes, "identity": self.embed.out_features}


class Stage(nn.Module):
    """Halve the side, then add one residual pair of convolutions."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.pair = nn.Sequential(
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features at half the side."""
        x = self.down(x)
        return torch.relu(x + self.pair(x))


@alone()
def load_probe(name: str, root: Path = MODELS) -> Probe:
    """Load a shipped probe, frozen and in eval mode.

    Args:
        name: "probe-a" or "probe-b"; of heads "heads-probe-a" or "heads-probe-b".
        root: Folder of shipped models.

    Raises:
        ModelError: There is no such probe, or its files are damaged.
    """
    folder = root / name
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name for path in root.glob("*probe-*/config.json"))
        raise ModelError(f"no probe {name!r} in {root}; known: {', '.join(known) or 'none'}")
    try:
        probe = Probe(**json.loads((folder / "config.json").read_text()))
        probe.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the probe cannot be read ({error}); make it again") from error
    return probe.requires_grad_(False).eval()
