"""Places: a ground texture, a backdrop and a light each.

The ground is the plane y = 0. The backdrop hangs on a cylinder around the scene: close for a room (its foot is visible
as a wall), far for the open air (its foot is the horizon). Textures are linear RGB, [3, N].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrdiff.rng import stream
from lrdiff.world.paint import linear

Ground = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, z, distance from the centre, size of a pixel on the ground) -> colour [3, N]."""
Backdrop = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(azimuth / 2 pi, height on the wall, sine of the elevation, size of a pixel on the wall) -> colour [3, N]."""


@dataclass(frozen=True)
class Place:
    """One place.

    Attributes:
        name: Identifier.
        ground: Ground texture.
        backdrop: Backdrop texture.
        radius: Distance of the backdrop.
        sky: What surfaces see above them.
        horizon: What surfaces see sideways.
        floor: What surfaces see below them.
        key: Colour and strength of the key light.
        haze: Share of the horizon colour mixed into the ground per world unit of distance.
    """

    name: str
    ground: Ground
    backdrop: Backdrop
    radius: float
    sky: tuple[float, float, float]
    horizon: tuple[float, float, float]
    floor: tuple[float, float, float]
    key: tuple[float, float, float]
    haze: float = 0.0


@functools.lru_cache(maxsize=8)
def _tile(slope: float, device: str) -> Tensor:
    """A periodic 256 x 256 noise tile whose amplitude falls as frequency**-slope, zero mean, standard deviation 1/3."""
    size = 256
    white = torch.randn(size, size, generator=stream(0, "world/places", int(slope * 100)))
    fy, fx = torch.fft.fftfreq(size)[:, None] * size, torch.fft.rfftfreq(size)[None] * size
    frequency = torch.sqrt(fx * fx + fy * fy)
    spectrum = torch.fft.rfft2(white) * torch.where(frequency < 2.0, 0.0, 1.0) / frequency.clamp_min(2.0) ** slope
    tile = torch.fft.irfft2(spectrum, s=(size, size))
    tile = (tile / tile.std() / 3.0).clamp(-1.0, 1.0)
    return F.pad(tile[None, None], (0, 1, 0, 1), mode="circular").to(device)


def noise(u: Tensor, v: Tensor, slope: float = 1.6) -> Tensor:
    """Periodic noise in about [-1, 1]; one period per unit of ``u`` and ``v``."""
    grid = torch.stack([(u - u.floor()) * 2.0 - 1.0, (v - v.floor()) * 2.0 - 1.0], -1)[None, None]
    tile = _tile(slope, str(u.device))
    return F.grid_sample(tile, grid, mode="bilinear", padding_mode="border", align_corners=True)[0, 0, 0]


def _rgb(code: str, like: Tensor) -> Tensor:
    return torch.tensor(linear(code), dtype=like.dtype, device=like.device)[:, None]


def _mix(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return a + (b - a) * w


def _ramp(low: str, high: str, w: Tensor) -> Tensor:
    return _mix(_rgb(low, w), _rgb(high, w), w.clamp(0.0, 1.0))


def _step(v: Tensor, width: Tensor | float) -> Tensor:
    """0 below 0, 1 above, a ramp of ``width`` between."""
    return (0.5 + v / width).clamp(0.0, 1.0)


def _line(v: Tensor, half: float, width: Tensor) -> Tensor:
    """Lines of half-width ``half`` at the integers, filtered to pixels of ``width`` (both in units of ``v``)."""
    d = (v - v.round()).abs()
    width = width + 0.02
    return (0.5 + (half - d) / width).clamp(0.0, 1.0) * (1.0 / (1.0 + 0.35 * width / half)).clamp(0.0, 1.0)


def _checks(u: Tensor, v: Tensor, width: Tensor) -> Tensor:
    """Checkerboard share in [0, 1], filtered towards 1/2 where pixels outgrow the squares."""
    a = ((((u * 0.5 - (u * 0.5).floor()) - 0.5).abs() - 0.25) * 4.0 / (width + 0.03)).clamp(-1.0, 1.0)
    b = ((((v * 0.5 - (v * 0.5).floor()) - 0.5).abs() - 0.25) * 4.0 / (width + 0.03)).clamp(-1.0, 1.0)
    return 0.5 + 0.5 * a * b / (1.0 + width * width * 2.0)


def _table_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    plank = x * 1.1
    index = plank.floor()
    grain = noise(x * 0.35 + index * 0.37, z * 0.035 + index * 0.61)
    fine = noise(x * 1.3 + index * 0.13, z * 0.06)
    wood = _ramp("8a5228", "c98d52", 0.5 + 0.75 * grain + 0.25 * fine + 0.28 * torch.sin(index * 2.4))
    return _mix(wood, _rgb("4a2812", x), _line(plank, 0.022, w * 1.1) * 0.9)


def _table_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    blur = noise(a * 3.0, h * 0.05, 2.4)
    return _ramp("6f8f86", "cdd8c4", 0.35 + h * 0.16 + 0.45 * blur)


def _meadow_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    patch = noise(x * 0.06, z * 0.06)
    blade = noise(x * 0.42, z * 0.33, 0.8)
    green = _ramp("2f6b1c", "8cc63a", 0.48 + 0.45 * patch + 0.40 * blade / (1.0 + 4.0 * w))
    flower = _step(noise(x * 0.21 + 0.4, z * 0.21, 0.6) - 0.62, 0.08) / (1.0 + 4.0 * w)
    return _mix(green, _rgb("fff3b0", x), flower * 0.9)


def _clouds(a: Tensor, e: Tensor, low: str, high: str, cloud: str, amount: float) -> Tensor:
    sky = _ramp(low, high, e * 2.6)
    puff = noise(a * 2.0, e * 0.55 + 0.2, 2.0)
    return _mix(sky, _rgb(cloud, a), _step(puff - 0.22 + 0.3 * (0.1 - e).clamp_min(0.0), 0.35) * amount)


def _meadow_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    hills = 0.045 + 0.05 * noise(a * 2.0, torch.full_like(a, 0.3), 2.2)
    return _mix(_clouds(a, e, "bfe3fb", "3f8fe0", "ffffff", 0.95), _rgb("5b9a4a", a), _step(hills - e, 0.012))


def _beach_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    ripple = torch.sin(z * 9.0 + 7.0 * noise(x * 0.05, z * 0.05)) / (1.0 + 12.0 * w * w)
    grain = noise(x * 0.5, z * 0.5, 0.5)
    sand = _ramp("d9b777", "f7e3b5", 0.5 + 0.18 * ripple + 0.30 * grain + 0.3 * noise(x * 0.04, z * 0.04))
    shore = r - 6.0 + 1.3 * noise(x * 0.03, z * 0.03)
    wave = 0.5 + 0.5 * torch.sin(r * 2.2 + 5.0 * noise(x * 0.04, z * 0.04))
    sea = _ramp("1c9fb5", "37c7c9", wave * 0.8)
    return _mix(
        _mix(sand, sea, _step(shore - 0.35, 0.25)), _rgb("ffffff", x), _step(0.32 - (shore - 0.2).abs(), 0.2) * 0.9
    )


def _beach_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    sky = _clouds(a, e, "fdf0d0", "58b6ea", "ffffff", 0.7)
    return _mix(sky, _ramp("0f7fa8", "1593b5", e * 15.0), _step(0.035 - e, 0.006))


def _snow_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    return _ramp("b4c9e6", "ffffff", 0.72 + 0.6 * noise(x * 0.07, z * 0.07, 2.0) + 0.12 * noise(x * 0.6, z * 0.6, 0.5))


def _snow_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    sky = _ramp("e8eef5", "9db7d6", e * 2.2 + 0.2 * noise(a, e * 0.3, 2.2))
    peaks = 0.09 + 0.16 * noise(a * 1.5, torch.full_like(a, 0.7), 1.7)
    rock = _ramp("7f97b8", "f4f8ff", 0.5 + (e - peaks * 0.45) * 14.0 + 0.5 * noise(a * 6.0, e * 3.0))
    return _mix(sky, rock, _step(peaks - e, 0.012))


def _desert_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    ripple = torch.sin(x * 7.0 + 2.5 * z + 9.0 * noise(x * 0.05, z * 0.05)) / (1.0 + 12.0 * w * w)
    return _ramp("a8501c", "e99a4a", 0.5 + 0.30 * ripple + 0.35 * noise(x * 0.05, z * 0.05))


def _desert_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    sky = _mix(_ramp("ffd27a", "f2784b", e * 5.0), _rgb("6a3a78", a), ((e - 0.15) * 3.0).clamp(0.0, 1.0))
    dunes = 0.05 + 0.07 * noise(a * 1.5, torch.full_like(a, 0.1), 2.2)
    return _mix(sky, _ramp("7e3214", "c0662c", e * 9.0), _step(dunes - e, 0.01))


def _tiles_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    u, v = x * 1.15 + 0.3, z * 1.15 + 0.4
    tone = torch.sin(u.floor() * 12.9 + v.floor() * 7.3) * 0.25
    tile = _ramp("7cc4cf", "a9dfe3", 0.5 + tone)
    return _mix(tile, _rgb("f7fbfa", x), torch.maximum(_line(u + 0.5, 0.05, w), _line(v + 0.5, 0.05, w)))


def _tiles_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    u, v = a * 44.0, h * 1.4 + 0.5
    wall = _ramp("e4eef0", "ffffff", 0.5 + 0.4 * torch.sin(u.floor() * 4.1 + v.floor() * 9.7))
    return _mix(wall, _rgb("a9bfc4", a), torch.maximum(_line(u, 0.035, w), _line(v, 0.035, w)))


def _chess_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    return _mix(_rgb("1d1a1c", x), _rgb("f1ead8", x), _checks(x * 0.95 + 0.4, z * 0.95 + 0.4, w))


def _chess_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    return _ramp("4d0f22", "95314a", 0.15 + h * 0.20 + 0.3 * noise(a * 2.0, h * 0.04, 2.4))


def _street_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    speck = noise(x * 0.8, z * 0.8, 0.3) / (1.0 + 3.0 * w)
    road = _ramp("3c3d42", "6b6c70", 0.45 + 0.55 * speck + 0.25 * noise(x * 0.06, z * 0.06))
    lane = _step(0.13 - (x - 1.3).abs(), w + 0.03) * _step(0.32 - (z * 0.28 - (z * 0.28).round()).abs(), 0.03)
    return _mix(road, _rgb("f3c61d", x), lane * 0.95)


def _street_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    v = h * 2.6
    u = a * 42.0 + 0.5 * (v.floor() - 2.0 * (v.floor() * 0.5).floor())
    tone = torch.sin(u.floor() * 5.7 + v.floor() * 3.1) * 0.3
    brick = _ramp("8f3b28", "c2634a", 0.5 + tone + 0.3 * noise(a * 9.0, h * 0.3))
    mortar = torch.maximum(_line(u, 0.05, w * 1.3), _line(v, 0.09, w * 2.6))
    return _mix(brick, _rgb("d9cdbd", a), mortar)


def _carpet_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    pile = noise(x * 0.9, z * 0.9, 0.4) / (1.0 + 3.0 * w)
    base = _ramp("6d1430", "a52a4d", 0.5 + 0.6 * pile)
    rings = _line(r * 0.55 + 0.10 * torch.cos(8.0 * torch.atan2(x, z)), 0.07, w * 0.55)
    return _mix(base, _rgb("e5b567", x), rings * 0.85 * _step(5.0 - r, 0.5))


def _carpet_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    stripe = _line(a * 26.0, 0.25, w)
    wall = _mix(_rgb("e9dcc0", a), _rgb("cdb98f", a), stripe)
    return _mix(wall, _rgb("fbf7ee", a), _step(0.35 - h, 0.04))


def _night_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    return _ramp("131c33", "2d3f63", 0.5 + 0.6 * noise(x * 0.07, z * 0.07) + 0.25 * noise(x * 0.5, z * 0.5, 0.6))


def _stars(a: Tensor, e: Tensor, density: float) -> Tensor:
    u, v = a * 150.0, e * 26.0
    cu, cv = u.floor(), v.floor()
    hash_ = torch.frac(torch.sin(cu * 12.9898 + cv * 78.233) * 437.58)
    du, dv = u - cu - 0.5, v - cv - 0.5
    return (1.0 - (du * du + dv * dv) * 9.0).clamp_min(0.0) * _step(hash_.abs() - 1.0 + density, 0.02)


def _night_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    sky = _ramp("2b3f7a", "0a1030", e * 3.0)
    glow = _step(noise(a * 1.5, e * 0.5, 2.0) - 0.2, 0.8) * 0.35
    sky = _mix(sky, _rgb("5b4a8f", a), glow)
    return sky + _stars(a, e, 0.22) * 1.1


def _moon_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    rough = noise(x * 0.25, z * 0.25, 1.0)
    bowl = noise(x * 0.055 + 0.5, z * 0.055, 1.8)
    rim = _step(0.10 - (bowl - 0.28).abs(), 0.12)
    grey = _ramp("5c5e63", "b4b5b8", 0.55 + 0.35 * rough - 0.55 * _step(bowl - 0.30, 0.12))
    return _mix(grey, _rgb("d8d8d8", x), rim * 0.65)


def _moon_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    sky = _rgb("020205", a) + _stars(a, e, 0.16)
    da = (a * 5.0 - (a * 5.0).round()) * (math.tau / 5.0)
    d = torch.sqrt(da * da + (e - 0.17) ** 2)
    swirl = noise(a * 6.0, e * 1.4, 1.8)
    earth = _mix(_ramp("1450a8", "2f86d8", 0.5 + da * 5.0), _rgb("f2f6f4", a), _step(swirl - 0.12, 0.2))
    return _mix(sky, earth * (1.0 - (d * 11.0) ** 4).clamp_min(0.15), _step(0.085 - d, 0.008))


def _studio_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    return _ramp("e9eaec", "d3d6db", r * 0.14)


def _studio_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    return _ramp("c9cdd3", "f4f5f7", h * 0.25)


def _stage_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    board = x * 1.6
    wood = _ramp("2a1a10", "4b3020", 0.5 + 0.3 * torch.sin(board.floor() * 3.3) + 0.4 * noise(x * 0.3, z * 0.03))
    wood = _mix(wood, _rgb("120a06", x), _line(board, 0.035, w * 1.6))
    return wood * (0.7 + 2.6 * _step(2.6 - r, 0.9))


def _stage_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    fold = torch.sin(a * 150.0 + 3.0 * torch.sin(a * 37.0))
    return _ramp("4a0309", "c51a22", 0.45 + 0.45 * fold + 0.06 * h)


def _lava_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    rock = _ramp("1a1412", "463630", 0.5 + 0.8 * noise(x * 0.2, z * 0.2, 1.0))
    crack = noise(x * 0.06, z * 0.06, 1.5).abs()
    hot = _mix(_rgb("ff3b00", x), _rgb("ffd23c", x), _step(0.025 - crack, 0.05)) * 1.15
    return _mix(rock, hot, _step(0.05 - crack, 0.05))


def _lava_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    smoke = noise(a * 2.0, e * 0.6, 1.8)
    sky = _ramp("ff6a1f", "3a0d14", e * 3.2 + 0.3 * smoke)
    d = (a * 3.0 - (a * 3.0).round()).abs() / 3.0
    cone = 0.26 - d * 2.2 + 0.03 * noise(a * 5.0, torch.full_like(a, 0.2))
    return _mix(sky, _rgb("1d1113", a), _step(torch.minimum(cone, torch.full_like(a, 0.2)) - e, 0.012))


def _sea_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    sand = _ramp("3d8fa0", "7cc3bd", 0.45 + 0.4 * noise(x * 0.05, z * 0.05) + 0.2 * noise(x * 0.5, z * 0.5, 0.6))
    net = (1.0 - noise(x * 0.11, z * 0.11, 1.9).abs() * 5.0).clamp_min(0.0)
    net = net + (1.0 - noise(z * 0.09 + 0.3, x * 0.09 + 0.6, 1.9).abs() * 5.0).clamp_min(0.0)
    return _mix(sand, _rgb("dffcf2", x), (net * net * 0.35).clamp(0.0, 0.8))


def _sea_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    water = _ramp("1a6f9c", "5fd0e0", e * 1.9)
    rays = (torch.sin(a * 60.0 + e * 5.0) * torch.sin(a * 23.0 + 1.0)).clamp_min(0.0)
    weed = noise(a * 9.0, e * 0.25 + 0.1 * torch.sin(e * 20.0 + a * 30.0), 1.2)
    water = water + _rgb("8ff0f0", a) * rays * (e + 0.05).clamp(0.0, 0.5) * 0.6
    return _mix(water, _rgb("0b4a63", a), _step(weed - 0.10 - 2.0 * e, 0.15) * 0.85)


def _forest_ground(x: Tensor, z: Tensor, r: Tensor, w: Tensor) -> Tensor:
    leaf = noise(x * 0.33, z * 0.33, 0.7)
    floor = _ramp("3b2a15", "8a6a2c", 0.5 + 0.75 * leaf / (1.0 + 2.0 * w))
    return _mix(floor, _rgb("4c6b22", x), _step(noise(x * 0.05, z * 0.05) - 0.05, 0.3) * 0.8)


def _forest_back(a: Tensor, h: Tensor, e: Tensor, w: Tensor) -> Tensor:
    light = _ramp("b7cf6c", "1d4a22", e * 3.0 + 0.45 * noise(a * 7.0, e * 1.8, 1.2))
    far = _step(torch.sin(a * 173.0 + 2.0 * torch.sin(a * 41.0)) - 0.45, 0.2)
    near = _step(torch.sin(a * 71.0 + 2.5 * torch.sin(a * 19.0)) - 0.72, 0.08)
    bark = _ramp("2a1c12", "4b3320", 0.5 + 0.6 * noise(a * 30.0, e * 0.8))
    return _mix(_mix(light, _rgb("4a5a30", a), far * 0.8), bark, near)


def _place(
    name: str, ground: Ground, back: Backdrop, radius: float, light: tuple[str, str, str], key: tuple[str, float],
    fill: float, haze: float = 0.0,
) -> Place:  # fmt: skip
    sky, horizon, floor = (tuple(c * fill for c in linear(code)) for code in light)
    return Place(name, ground, back, radius, sky, horizon, floor, tuple(c * key[1] for c in linear(key[0])), haze)  # type: ignore[arg-type]


PLACES: tuple[Place, ...] = (
    _place("table", _table_ground, _table_back, 6.0, ("fdfaf0", "c9d2c4", "b57f4a"), ("fff2dc", 1.25), 0.62),
    _place("meadow", _meadow_ground, _meadow_back, 60.0, ("8fc3f5", "cfe8f8", "5f9a30"), ("fff4d8", 1.35), 0.66, 0.012),
    _place("beach", _beach_ground, _beach_back, 60.0, ("8fd0f2", "f3efe0", "e0c48c"), ("fff0d0", 1.35), 0.62, 0.004),
    _place("snow", _snow_ground, _snow_back, 60.0, ("bcd2ee", "e6eef6", "dfe9f7"), ("fffaf0", 1.1), 0.66, 0.012),
    _place("desert", _desert_ground, _desert_back, 60.0, ("8d6c9c", "ffbf7c", "c87434"), ("ffdcae", 1.5), 0.62, 0.010),
    _place("bathroom", _tiles_ground, _tiles_back, 6.0, ("f4ffff", "e4f2f4", "a5d6da"), ("fffdf8", 1.15), 0.64),
    _place("chessboard", _chess_ground, _chess_back, 7.0, ("fff0ea", "b06a78", "8f8a80"), ("fff3e6", 1.35), 0.60),
    _place("street", _street_ground, _street_back, 7.0, ("d5e4f2", "b98a78", "6a6a6e"), ("fff3e0", 1.35), 0.62),
    _place("carpet", _carpet_ground, _carpet_back, 6.0, ("fff5e2", "e6d6b4", "8f2444"), ("ffefd4", 1.25), 0.62),
    _place("night", _night_ground, _night_back, 60.0, ("5a70b8", "5068a8", "2b3c62"), ("e6ecff", 1.15), 0.62, 0.010),
    _place("moon", _moon_ground, _moon_back, 60.0, ("4a4c55", "5a5c64", "9a9b9f"), ("ffffff", 1.65), 0.55),
    _place("studio", _studio_ground, _studio_back, 7.0, ("ffffff", "eceef0", "dcdee2"), ("fffcf6", 0.95), 0.62),
    _place("stage", _stage_ground, _stage_back, 7.0, ("c8a8a0", "a03038", "5a3a28"), ("fff0d8", 1.6), 0.60),
    _place("volcano", _lava_ground, _lava_back, 60.0, ("7a3a30", "e8703a", "a04020"), ("ffd9b8", 1.25), 0.62, 0.006),
    _place("sea", _sea_ground, _sea_back, 30.0, ("9ff0f4", "4fb4cc", "5aa8ac"), ("d8fff6", 1.2), 0.58, 0.035),
    _place("forest", _forest_ground, _forest_back, 20.0, ("b4d890", "8fb060", "5a4a24"), ("fff3cc", 1.35), 0.60, 0.006),
)  # fmt: skip
PLACE_NAMES: tuple[str, ...] = tuple(place.name for place in PLACES)
