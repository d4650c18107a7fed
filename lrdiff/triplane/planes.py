"""Features of points in space, read from three planes, and the network that makes density and colour of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrdiff.triplane.config import TriplaneConfig
from lrdiff.triplane.layers import Linear

X, Y, Z = 0, 1, 2
AXES = ((X, Y), (X, Z), (Y, Z))
LEGACY_AXES = ((X, Y), (X, Z), (Z, X))
MARGIN = 0.001


def sample_planes(planes: Tensor, points: Tensor, box: float, legacy_axes: bool) -> Tensor:
    """Return the mean of the three planes' features at points.

    A point is scaled by 2 / box, so that the planes cover the cube of side `box` around the origin; outside they are 0.
    The first of two axes runs along a plane's columns, the second along its rows.

    Args:
        planes: [B, 3, F, H, W].
        points: [B, N, 3] in world units.
        box: Side of the cube.
        legacy_axes: (x, y), (x, z), (z, x), as the published weights expect, instead of (x, y), (x, z), (y, z).

    Returns:
        [B, N, F].
    """
    batch, three, features, height, width = planes.shape
    # In the points' precision: a place that is rounded to half precision may be an eighth of a cell off.
    planes = planes.to(points.dtype)
    pairs = LEGACY_AXES if legacy_axes else AXES
    grid = torch.stack([points[..., list(pair)] for pair in pairs], 1) * (2 / box)
    found = functional.grid_sample(
        planes.reshape(batch * three, features, height, width),
        grid.reshape(batch * three, 1, -1, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return found.reshape(batch, three, features, -1).mean(1).transpose(1, 2)


class Decoder(nn.Module):
    """Features to raw density and colours in [0, 1]: two layers with a Softplus between.

    Colours are sigmoid(x) (1 + 2 m) - m with a margin m of 0.001, so that 0 and 1 can be reached.
    """

    def __init__(self, config: TriplaneConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Linear(config.features, config.hidden, gain=config.decoder_gain),
            nn.Softplus(),
            Linear(config.hidden, 1 + config.colours, gain=config.decoder_gain),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map [..., F] to density [...] and colours [..., C]."""
        out = self.net(features)
        return out[..., 0], out[..., 1:].sigmoid() * (1 + 2 * MARGIN) - MARGIN
