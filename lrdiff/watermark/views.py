"""How a picture is held before it is read: mirrored, turned, tilted, enlarged, made smaller.

A picture that was turned or resized still carries its mark, but the extractor knows patterns of one size and direction.
Tried over a grid, one of the views undoes what was done, and every view that is tried counts as a test of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class View:
    """One way to hold a picture; the default is as it came.

    Attributes:
        mirrored: Left to right, before anything else.
        quarters: Quarter turns, counter-clockwise.
        degrees: A tilt about the middle, counter-clockwise; the size stays and the corners are black.
        scale: Factor on both sides, last.
    """

    mirrored: bool = False
    quarters: int = 0
    degrees: float = 0.0
    scale: float = 1.0

    def __str__(self) -> str:
        if self == View():
            return "as it came"
        parts = [
            "mirrored" if self.mirrored else "",
            f"turned {90 * self.quarters} degrees" if self.quarters else "",
            f"tilted {self.degrees:g} degrees" if self.degrees else "",
            f"sides times {self.scale:g}" if self.scale != 1.0 else "",
        ]
        return ", ".join(part for part in parts if part)

    def __call__(self, images: Tensor, largest: int) -> Tensor:
        """Return images [B, 3, H', W'] in [-1, 1].

        Args:
            images: [B, 3, H, W] in [-1, 1].
            largest: Side in pixels; of what would be larger, the middle is taken.
        """
        if self.mirrored:
            images = images.flip(3)
        if self.quarters:
            images = torch.rot90(images, self.quarters, (2, 3))
        if self.degrees:
            angles = torch.full((len(images),), self.degrees, device=images.device)
            images = 2.0 * rotate((images + 1.0) / 2.0, angles) - 1.0
        if self.scale == 1.0:
            return images
        room = int(largest / self.scale)
        height, width = (min(side, room) for side in images.shape[-2:])
        top, left = ((side - part) // 2 for side, part in zip(images.shape[-2:], (height, width), strict=True))
        images = images[..., top : top + height, left : left + width]
        size = [max(1, round(side * self.scale)) for side in (height, width)]
        shrinks = self.scale < 1.0
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=shrinks).clamp(-1.0, 1.0)


DEGREES = (0, -30, -20, -10, 10, 20, 30)
SCALES = (1.0, 1.25, 1.55, 1.9, 0.8, 0.64)
"""A fifth off from one to the next, in size and in what the extractor bears: see the table in README.md."""
PLAIN = (View(),)
SEARCH = (
    *(View(mirrored, quarters) for mirrored, quarters in itertools.product((False, True), range(4))),
    *(View(degrees=d, scale=s) for d, s in itertools.product(DEGREES, SCALES) if (d, s) != (0, 1.0)),
)
"""Eight mirrored and quarter-turned views, and every tilt in every size: 49."""


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images [B, 3, H, W] in [0, 1] about their middle by angles [B]; the size stays, the corners are black."""
    cos, sin = torch.deg2rad(degrees).cos().to(x), torch.deg2rad(degrees).sin().to(x)
    height, width = x.shape[-2:]
    zero = torch.zeros_like(cos)
    first = torch.stack([cos, -sin * height / width, zero], dim=1)
    second = torch.stack([sin * width / height, cos, zero], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
