"""Strengths of the distortions that a watermark is trained to survive. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, model_validator

Share = Annotated[float, Ge(0.0), Le(1.0)]
Area = Annotated[float, Gt(0.0), Le(4.0)]
Quality = Annotated[float, Ge(1.0), Le(100.0)]

_RANGES = ("crop_area", "resize_area", "jpeg_quality", "erase_area")


class DistortionConfig(BaseModel):
    """How often each distortion comes, and between which strengths it is drawn.

    Crop and resize are drawn once per batch, since all its images must have one size; everything else per image.
    Several distortions of one image are the rule, not the exception.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    clean: Share = 0.1
    """Share of batches that nothing happens to."""

    crop: Share = 0.35
    """Share of batches that are cropped."""

    crop_area: tuple[Area, Area] = (0.1, 0.9)
    """Part of the area that a crop keeps."""

    resize: Share = 0.35
    """Share of batches that are resized."""

    resize_area: tuple[Area, Area] = (0.5, 1.6)
    """Area after resizing, as part of the area before; what was resized further is found by a search."""

    min_side: PositiveInt = 32
    """Crops and resizes stop at this side, in pixels; images that are smaller already are left alone."""

    flip: Share = 0.5
    """Share of images that are mirrored left to right."""

    upside_down: Share = 0.0
    """Share of images that are mirrored top to bottom."""

    rotate: Share = 0.2
    """Share of images that are rotated; the corners turn black."""

    degrees: Annotated[float, Ge(0.0), Le(180.0)] = 30.0
    """Largest angle of a rotation, to either side."""

    jpeg: Share = 0.65
    """Share of images that go through JPEG."""

    jpeg_quality: tuple[Quality, Quality] = (35.0, 90.0)
    """Quality of JPEG, 1 to 100."""

    blur: Share = 0.15
    """Share of images that are blurred by a Gaussian."""

    blur_sigma: NonNegativeFloat = 1.5
    """Largest standard deviation of the blur, in pixels."""

    noise: Share = 0.15
    """Share of images that get Gaussian noise."""

    noise_std: NonNegativeFloat = 0.06
    """Largest standard deviation of the noise; the image's range is 1."""

    colour: Share = 0.3
    """Share of images that each of brightness, contrast, saturation, sharpness and hue is changed in."""

    brightness: Annotated[float, Ge(1.0)] = 2.0
    """Largest factor on all pixels; the smallest is its inverse."""

    contrast: Annotated[float, Ge(1.0)] = 2.0
    """Largest factor on the distance from the mean grey; the smallest is its inverse."""

    saturation: Annotated[float, Ge(1.0)] = 2.0
    """Largest factor on the distance from the pixel's own grey; the smallest is its inverse."""

    sharpness: Annotated[float, Ge(1.0)] = 2.5
    """Largest factor on the distance from the smoothed image; the smallest is its inverse."""

    hue: Annotated[float, Ge(0.0), Le(180.0)] = 30.0
    """Largest turn of all hues, in degrees."""

    erase: Share = 0.15
    """Share of images in which a rectangle is painted over with one colour."""

    erase_area: tuple[Area, Area] = (0.05, 0.3)
    """Part of the area that is painted over, at most 1."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in _RANGES:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first number ({low}) must not be larger than the second ({high})")
        for name in ("crop_area", "erase_area"):
            if getattr(self, name)[1] > 1.0:
                raise ValueError(f"{name}: a part of the area is at most 1")
        return self
