"""The attack suite: what pictures go through on their way, or at the hands of somebody who wants the mark gone.

These are the real things, for measuring: Pillow's own JPEG and WebP files, 8-bit pictures in and out. The softened
forms that training needs, with gradients, are another matter and live elsewhere. Crops and resizes are counted by area,
as Stable Signature counts them (arXiv 2303.15435): keeping 0.1 of the area keeps 0.316 of each side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from lrdiff.errors import ConfigError

Family = Literal["geometric", "photometric", "compression", "degradation", "combination", "model"]
Change = Callable[[Image.Image, float, torch.Generator], Image.Image]
PICTURE = "the picture"
"""What most attackers have."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A change of one picture with a strength.

    Attributes:
        name: How tables and flags call it.
        family: What kind of change it is.
        measure: What the strength counts.
        strengths: Those of the suite, from weak to strong.
        identity: The strength that changes nothing, or None where even the weakest changes something.
        aligned: Whether pixels stay where they were, so that PSNR against the picture before means something.
        knowledge: What the attacker needs.
        change: (RGB picture, strength, source of randomness) -> RGB picture.
    """

    name: str
    family: Family
    measure: str
    strengths: tuple[float, ...]
    identity: float | None
    aligned: bool
    change: Change
    knowledge: str = PICTURE

    def __call__(self, image: Image.Image, strength: float, rng: torch.Generator) -> Image.Image:
        """Return the changed picture; the identity strength returns the picture as it is.

        Raises:
            ConfigError: The strength is out of range for this attack.
        """
        return image if strength == self.identity else self.change(image, strength, rng)


def _crop(image: Image.Image, area: float, _rng: torch.Generator) -> Image.Image:
    return _window(image, area, 0.5, 0.5)


def _crop_anywhere(image: Image.Image, area: float, rng: torch.Generator) -> Image.Image:
    x, y = torch.rand(2, generator=rng).tolist()
    return _window(image, area, x, y)


def _zoom(image: Image.Image, area: float, rng: torch.Generator) -> Image.Image:
    return _crop(image, area, rng).resize(image.size, Image.Resampling.BICUBIC)


def _window(image: Image.Image, area: float, x: float, y: float) -> Image.Image:
    """Cut out a share of the area; x and y in 0..1 say where between left and right, top and bottom."""
    if not 0.0 < area <= 1.0:
        raise ConfigError(f"a crop keeps a share of the area above 0 and at most 1, not {area}")
    width, height = _scaled(image, area)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return image.crop((left, top, left + width, top + height))


def _scaled(image: Image.Image, area: float) -> tuple[int, int]:
    """Return the size with `area` times the area and the same proportions."""
    side = math.sqrt(area)
    return max(1, round(image.width * side)), max(1, round(image.height * side))


def _resize(image: Image.Image, area: float, _rng: torch.Generator) -> Image.Image:
    if area <= 0.0:
        raise ConfigError(f"a resize needs an area above 0, not {area}")
    return image.resize(_scaled(image, area), Image.Resampling.BILINEAR)


def _rotate(image: Image.Image, degrees: float, _rng: torch.Generator) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BILINEAR)


def _mirror(image: Image.Image, _on: float, _rng: torch.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _upside_down(image: Image.Image, _on: float, _rng: torch.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _enhance(kind: Callable[[Image.Image], Any]) -> Change:
    def change(image: Image.Image, factor: float, _rng: torch.Generator) -> Image.Image:
        return kind(image).enhance(factor)

    return change


def _hue(image: Image.Image, turn: float, _rng: torch.Generator) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + round(256 * turn)) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _blur(image: Image.Image, radius: float, _rng: torch.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _median(image: Image.Image, side: float, _rng: torch.Generator) -> Image.Image:
    if side % 2 != 1:
        raise ConfigError(f"the median needs a window of an odd number of pixels, not {side}")
    return image.filter(ImageFilter.MedianFilter(int(side)))


def _noise(image: Image.Image, std: float, rng: torch.Generator) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    noise = torch.randn(values.shape, generator=rng).numpy()
    return Image.fromarray((values + 255.0 * std * noise).round().clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, quality: float, _rng: torch.Generator) -> Image.Image:
    return decoded(encoded(image, "JPEG", quality))


def _webp(image: Image.Image, quality: float, _rng: torch.Generator) -> Image.Image:
    return decoded(encoded(image, "WEBP", quality))


def encoded(image: Image.Image, form: Literal["JPEG", "WEBP"], quality: float) -> bytes:
    """Return the file that Pillow writes at this quality.

    Raises:
        ConfigError: The quality is no whole number from 1 to 100.
    """
    if not (1 <= quality <= 100 and quality == int(quality)):
        raise ConfigError(f"{form} quality is a whole number from 1 to 100, not {quality}")
    buffer = io.BytesIO()
    image.save(buffer, format=form, quality=int(quality))
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """Return the picture in a file's bytes as RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _erase(image: Image.Image, area: float, rng: torch.Generator) -> Image.Image:
    if not 0.0 < area < 1.0:
        raise ConfigError(f"erasing covers a share of the area between 0 and 1, not {area}")
    width, height = _scaled(image, area)
    x, y = torch.rand(2, generator=rng).tolist()
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    result = image.copy()
    result.paste((128, 128, 128), (left, top, left + width, top + height))
    return result


def _text(image: Image.Image, share: float, _rng: torch.Generator) -> Image.Image:
    """Write lines over the picture until they take `share` of its height."""
    result = image.copy()
    pen, size = ImageDraw.Draw(result), max(6.0, image.height / 12)
    for line in range(max(1, round(share * image.height / size))):
        pen.text((size / 4, line * size), "Lorem ipsum dolor sit amet", fill=(255, 255, 255), font=_font(size))
    return result


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _palette(image: Image.Image, colours: float, _rng: torch.Generator) -> Image.Image:
    return image.quantize(int(colours)).convert("RGB")


def _published(image: Image.Image, strength: float, rng: torch.Generator) -> Image.Image:
    """Crop, brighten and compress: at strength 1 crop .5, brightness 1.5 and JPEG 80."""
    smaller = _crop(image, 1.0 - 0.5 * strength, rng)
    brighter = ImageEnhance.Brightness(smaller).enhance(1.0 + 0.5 * strength)
    return _jpeg(brighter, round(100 - 20 * strength), rng)


def _posted(image: Image.Image, strength: float, rng: torch.Generator) -> Image.Image:
    """Scale down, sharpen and compress, as web sites do: at strength 1 area .5, sharpness 1.5 and JPEG 70."""
    smaller = _resize(image, 1.0 - 0.5 * strength, rng)
    sharper = ImageEnhance.Sharpness(smaller).enhance(1.0 + 0.5 * strength)
    return _jpeg(sharper, round(100 - 30 * strength), rng)


def _tilted(image: Image.Image, strength: float, rng: torch.Generator) -> Image.Image:
    """Turn, cut the corners off and compress: at strength 1 by 10 degrees, crop .7 and JPEG 80."""
    turned = _crop(_rotate(image, 10.0 * strength, rng), 1.0 - 0.3 * strength, rng)
    return _jpeg(turned, round(100 - 20 * strength), rng)


SUITE: tuple[Attack, ...] = (
    Attack("none", "photometric", "-", (0.0,), 0.0, True, lambda image, _strength, _rng: image),
    Attack("crop", "geometric", "area kept, middle", (0.7, 0.5, 0.3, 0.2, 0.1), 1.0, False, _crop),
    Attack("crop-anywhere", "geometric", "area kept", (0.5, 0.1), 1.0, False, _crop_anywhere),
    Attack("zoom", "geometric", "area kept, scaled back", (0.7, 0.5, 0.3), 1.0, False, _zoom),
    Attack("resize", "geometric", "area", (2.0, 0.7, 0.5, 0.3, 0.1), 1.0, False, _resize),
    Attack("rotate", "geometric", "degrees", (5, 10, 15, 25, 30, 45, 90), 0.0, False, _rotate),
    Attack("mirror", "geometric", "1 is mirrored", (1.0,), 0.0, False, _mirror),
    Attack("upside-down", "geometric", "1 is upside down", (1.0,), 0.0, False, _upside_down),
    Attack("brightness", "photometric", "factor", (0.5, 1.25, 1.5, 2.0), 1.0, True, _enhance(ImageEnhance.Brightness)),
    Attack("contrast", "photometric", "factor", (0.5, 1.25, 1.5, 2.0), 1.0, True, _enhance(ImageEnhance.Contrast)),
    Attack("saturation", "photometric", "factor", (0.0, 0.5, 1.5, 2.0), 1.0, True, _enhance(ImageEnhance.Color)),
    Attack("sharpness", "photometric", "factor", (1.5, 2.0, 4.0), 1.0, True, _enhance(ImageEnhance.Sharpness)),
    Attack("hue", "photometric", "share of a turn", (0.05, 0.1, 0.25), 0.0, True, _hue),
    Attack("jpeg", "compression", "quality", (95, 90, 80, 70, 60, 50, 40, 30, 20), None, True, _jpeg),
    Attack("webp", "compression", "quality", (90, 80, 50, 30), None, True, _webp),
    Attack("palette", "compression", "colours", (256, 64, 16), None, True, _palette),
    Attack("blur", "degradation", "radius in pixels", (0.5, 1.0, 1.5, 2.0), 0.0, True, _blur),
    Attack("median", "degradation", "window in pixels", (3, 5), 1.0, True, _median),
    Attack("noise", "degradation", "std of 0..1", (0.01, 0.02, 0.05, 0.1), 0.0, True, _noise),
    Attack("erase", "degradation", "area covered", (0.05, 0.1, 0.25, 0.5), 0.0, True, _erase),
    Attack("text", "degradation", "height covered", (0.1, 0.3, 0.6), 0.0, True, _text),
    Attack("crop+brightness+jpeg", "combination", "1: .5, 1.5, quality 80", (0.5, 1.0, 1.5), 0.0, False, _published),
    Attack("resize+sharpness+jpeg", "combination", "1: .5, 1.5, quality 70", (0.5, 1.0, 1.5), 0.0, False, _posted),
    Attack("rotate+crop+jpeg", "combination", "1: 10 deg, .7, quality 80", (0.5, 1.0, 1.5), 0.0, False, _tilted),
)
"""Attacks on one picture, by somebody who has nothing else."""


def choose(names: Sequence[str], others: Sequence[str] = ()) -> tuple[Attack, ...]:
    """Return the attacks of these names in the suite's order; all when none is named.

    Args:
        names: Names of attacks.
        others: Names that are known elsewhere, and passed over here.

    Raises:
        ConfigError: A name is unknown.
    """
    known = [attack.name for attack in SUITE] + list(others)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no attack is called {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(attack for attack in SUITE if not names or attack.name in names)
