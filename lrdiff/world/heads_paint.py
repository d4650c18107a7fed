"""Colours of procedural heads, and their light."""

from __future__ import annotations

import torch
from torch import Tensor

from lrdiff.world.heads import Heads
from lrdiff.world.heads_shape import distance, hair_distance, skin_distance

LIP, MOUTH = (0.70, 0.30, 0.30), (0.22, 0.05, 0.06)
WHITE, PUPIL, LASH, FRAME = (0.96, 0.95, 0.94), (0.04, 0.03, 0.03), (0.12, 0.07, 0.06), (0.08, 0.08, 0.10)
SCAR, SPOT, STREAK, BAND = (0.62, 0.12, 0.14), (0.16, 0.08, 0.05), (0.10, 0.45, 0.85), (0.85, 0.25, 0.35)


def soft(x: Tensor) -> Tensor:
    """Return 0 to 1 over an edge; the arguments' factors are the sharpness."""
    return torch.sigmoid(x)


def over(base: Tensor, share: Tensor, colour: Tensor | tuple[float, float, float]) -> Tensor:
    """Lay a colour over another. base [B, N, 3], share [B, N]."""
    top = colour if isinstance(colour, Tensor) else base.new_tensor(colour)
    return base + share[..., None] * (top - base)


def albedo(person: Heads, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return colours [B, N, 3], the share of hair [B, N] and the share of eye [B, N] at points of the surface."""
    x, y, z = points.unbind(-1)
    half, front = x.abs(), soft(80 * z)
    colour = person.skin.expand_as(points).clone()
    flush = torch.exp(-(((half - 0.15) / 0.07) ** 2 + ((y + 0.07) / 0.06) ** 2)) * front
    colour = over(colour, 0.35 * flush, person.skin * colour.new_tensor([1.05, 0.72, 0.72]))
    lip = soft(90 * (person.mouth - half)) * soft(
        160 * (person.open + 0.006 - (y + 0.17 - 40 * x**2 * person.smile).abs())
    )
    colour = over(colour, 0.8 * lip * front, LIP)
    line = (y + 0.17 - 40 * x**2 * person.smile).abs()
    inside = soft(120 * (0.85 * person.mouth - half)) * soft(260 * (0.45 * person.open - line))
    colour = over(colour, 0.85 * inside * front, MOUTH)
    across, up = half - person.eye_x, y - 0.05
    r = torch.hypot(0.8 * across, up / person.lid)  # an almond: wider than high
    white = soft(200 * (person.eye_r - r)) * front
    colour = over(colour, 0.75 * soft(160 * (person.eye_r + 0.007 - r)) * front, LASH)
    colour = over(colour, white, WHITE)
    r_iris = torch.hypot(across, up)
    colour = over(colour, white * soft(200 * (0.62 * person.eye_r - r_iris)), person.iris)
    colour = over(colour, white * soft(240 * (0.30 * person.eye_r - r_iris)), PUPIL)
    glint = torch.hypot(across + 0.2 * person.eye_r, up - 0.25 * person.eye_r)
    colour = over(colour, white * soft(300 * (0.2 * person.eye_r - glint)), WHITE)
    arch = 0.13 + person.brow - 2.2 * (half - person.eye_x) ** 2
    brow = soft(120 * (0.055 - (half - person.eye_x).abs())) * soft(220 * (0.013 - (y - arch).abs())) * front
    colour = over(colour, brow, 0.7 * person.hair)
    hair = soft(300 * (skin_distance(person, points) - hair_distance(person, points)))
    strand = 0.88 + 0.12 * torch.sin(46 * torch.atan2(half, z + 0.6) + 9 * y)
    colour = over(colour, hair, person.hair * strand[..., None])
    return _marked(person, points, colour, hair, r, front), hair, white


def _marked(person: Heads, points: Tensor, colour: Tensor, hair: Tensor, r: Tensor, front: Tensor) -> Tensor:
    x, y, z = points.unbind(-1)
    rim = soft(260 * (0.010 - (r - person.eye_r - 0.028).abs()))
    bridge = soft(260 * (0.008 - (y - 0.055).abs())) * soft(120 * (person.eye_x - person.eye_r - 0.02 - x.abs()))
    side = soft(260 * (0.008 - (y - 0.055).abs())) * soft(120 * (x.abs() - person.eye_x - person.eye_r - 0.025))
    frame = ((rim + bridge) * front + side * soft(60 * (z + 0.02))).clamp(max=1)
    colour = over(colour, person.glasses * frame * (1 - hair), FRAME)
    # Along the cheek: distance to the segment from (.09, -.02) to (.19, -.16).
    along = (((x - 0.09) * 0.10 + (y + 0.02) * -0.14) / 0.0296).clamp(0, 1)
    scar = torch.hypot(x - 0.09 - 0.10 * along, y + 0.02 + 0.14 * along)
    colour = over(colour, person.scar * soft(300 * (0.013 - scar)) * front, SCAR)
    spot = torch.hypot(x + 0.11, y + 0.12)
    colour = over(colour, person.spot * soft(300 * (0.020 - spot)) * front, SPOT)
    colour = over(colour, person.streak * hair * soft(90 * (0.045 - (x - 0.13).abs())), STREAK)
    return over(colour, person.band * soft(160 * (0.03 - (y - person.hairline - 0.05).abs())), BAND)


def shaded(person: Heads, points: Tensor, normal: Tensor, view: Tensor) -> Tensor:
    """Return lit colours in [0, 1].

    A wrapped diffuse light, a sky that is brighter above, dark creases, a soft gloss on skin and hair, and highlights
    on the eyes.

    Args:
        person: B heads.
        points: [B, N, 3] on the surface.
        normal: [B, N, 3], unit.
        view: [B, N, 3], unit, from the surface towards the camera.
    """
    colour, hair, eye = albedo(person, points)
    towards = (normal * person.light).sum(-1)
    diffuse = ((towards + 0.3) / 1.3).clamp_min(0)
    sky = 0.85 + 0.15 * normal[..., 1]
    crease = (0.55 + 0.45 * (distance(person, points + 0.05 * normal) / 0.05)).clamp(0.45, 1)
    between = torch.nn.functional.normalize(person.light + view, dim=-1)
    gloss = (normal * between).sum(-1).clamp_min(0)
    bare = (1 - hair) * (1 - eye)
    shine = 0.10 * bare * gloss**16 + 0.22 * hair * gloss**24 + 0.5 * eye * gloss**60
    edge = 0.10 * (1 - (normal * view).sum(-1).clamp(0, 1)) ** 3
    lit = colour * (0.50 * sky * crease + 0.68 * diffuse * (0.6 + 0.4 * crease))[..., None]
    return (lit + (shine + edge * sky)[..., None]).clamp(0, 1)
