"""Pictures as tensors and back: reading what people have, cropping to the base model's size, writing PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from lrdiff.errors import DataError
from lrdiff.files import write_bytes

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"
)
"""Formats that Pillow reads with a plug-in at most, by the bytes 8 to 12 of the file."""
CHANNELS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""The colour space a profile must be for, by the mode of the picture."""
RE_SAVE = "save it anew in sRGB as PNG or JPEG"
SAME_COLOUR = 2
"""A profile that moves no colour by more, of 255, is sRGB in another writing."""
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a 20,000 x 20,000 picture would need over 1 GB."""


def read_image(path: Path) -> Image.Image:
    """Read any picture as upright 8-bit RGB.

    EXIF orientation is applied; transparent parts are laid over white; palettes, grey, CMYK and 16-bit pictures are
    converted by their full range; colours are converted to sRGB from the colour profile the file carries.

    Raises:
        DataError: The file or its colour profile is damaged, or it is no picture, animated or too large. The message
            names the file.
    """
    try:
        with Image.open(path) as image:
            _check(path, image)
            image.load()
            return _to_rgb(path, ImageOps.exif_transpose(image), image.info.get("icc_profile"))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise TypeError, KeyError, struct.error and more
        raise DataError(f"{path}: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Say why Pillow could not read a file, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as problem:
        return f"cannot be read ({problem.strerror}); replace or remove it"
    if not start:
        return "is empty; replace or remove it"
    if start[4:8] == b"ftyp" and start[8:] in BRANDS:
        name = BRANDS[start[8:]]
        return f"is a picture in {name} format that cannot be read ({error}); convert it to PNG or JPEG"
    return f"cannot be read as a picture ({error}); replace or remove it"


def _check(path: Path, image: Image.Image) -> None:
    """Refuse animations and sizes that would fill the memory, before anything is decoded."""
    frames = getattr(image, "n_frames", 1)
    # Phones store a depth map or a second exposure behind the picture (MPO); what people see is the first frame.
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{path}: holds {frames} frames; save one frame as PNG")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path}: too large ({size}); scale it below {MAX_PIXELS // 10**6} megapixels")


def _to_rgb(path: Path, image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert any mode to sRGB without losing range or showing hidden colours of transparent pixels."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _to_srgb(path, _to_grey(path, image), icc)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        is_grey = image.mode in ("LA", "La", "L", "1")
        with_alpha = image.convert("LA" if is_grey else "RGBA")
        colours = _to_srgb(path, with_alpha.convert("L" if is_grey else "RGB"), icc)
        colours.putalpha(with_alpha.getchannel("A"))
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return _to_srgb(path, image.convert("L") if image.mode == "1" else image, icc)


def _to_grey(path: Path, image: Image.Image) -> Image.Image:
    """Scale integers of 16 bits, or floats, to 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    # 16-bit files open as "I" in some formats: their range is 0..65535 either way. Floats are taken as 0..1.
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0.0 <= low <= high <= top:
        raise DataError(f"{path}: holds values from {low:g} to {high:g}, outside 0 to {top:g}; save it as 8-bit PNG")
    return Image.fromarray((values / top * 255).round().astype(np.uint8))


def _to_srgb(path: Path, image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert to RGB: through the colour profile the file carries, or plainly where it carries none.

    Raises:
        DataError: The profile is damaged, or for pictures of another kind.
    """
    if not icc:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = cast(Any, profile.profile).xcolor_space.strip()
        if space == "RGB" or image.mode not in CHANNELS:
            # A palette has its colours in RGB; grey is RGB of three equal channels.
            image = image.convert("RGB") if image.mode != "CMYK" else image
        if space != CHANNELS[image.mode]:
            raise DataError(f"{path}: is {image.mode}, but its colour profile is for {space}; {RE_SAVE}")
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if image.mode == "RGB" and _keeps_colours(transform):
            return image
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: its colour profile is damaged ({error}); {RE_SAVE}") from error
    assert converted is not None  # only a conversion in place returns nothing
    return converted


def _keeps_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Tell whether a transform to sRGB starts from sRGB: it would then only round pixels to their neighbours.

    Profiles of the same space have many names and encodings, so it is asked what the transform does to a grid of
    colours.
    """
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    moved = ImageCms.applyTransform(Image.fromarray(grid), transform)
    return int(np.abs(np.asarray(moved, dtype=np.int16) - grid).max()) <= SAME_COLOUR


def crop_to(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale so that the picture covers width x height, then crop the middle."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as float32 [3, H, W] in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32).copy()
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1.0


def to_image(tensor: Tensor) -> Image.Image:
    """Return float [3, H, W] as an 8-bit picture; values outside [-1, 1] are clipped, as a screen would.

    Raises:
        DataError: The tensor holds NaN or infinity, which no picture can show.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise DataError("an image holds NaN or infinity and was not written")
    array = ((tensor.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def save_png(tensor: Tensor, path: Path) -> None:
    """Write [3, H, W] in [-1, 1] as PNG, atomically."""
    buffer = io.BytesIO()
    to_image(tensor).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
