"""Pictures as tensors and back: reading what people have, cropping to the base model's size, writing PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lrdiff.errors import DataError
from lrdiff.files import write_bytes

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a 20,000 x 20,000 picture would need over 1 GB."""


def read_image(path: Path) -> Image.Image:
    """Read any picture as upright 8-bit RGB.

    EXIF orientation is applied; transparent parts are laid over white; palettes, grey, CMYK and 16-bit pictures are
    converted by their full range.

    Raises:
        DataError: The file is no picture, is damaged, animated or too large. The message names the file.
    """
    try:
        with Image.open(path) as image:
            _check(path, image)
            image.load()
            return _to_rgb(path, ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise TypeError, KeyError, struct.error and more
        reason = "is empty" if path.is_file() and path.stat().st_size == 0 else f"cannot be read as a picture ({error})"
        raise DataError(f"{path}: {reason}; replace or remove it") from error


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


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert any mode to RGB without losing range or showing hidden colours of transparent pixels."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files open as "I" in some formats: their range is 0..65535 either way. Floats are taken as 0..1.
        top = 1.0 if image.mode == "F" else 65535.0
        low, high = float(values.min()), float(values.max())
        if not 0.0 <= low <= high <= top:
            raise DataError(
                f"{path}: holds values from {low:g} to {high:g}, outside 0 to {top:g}; save it as 8-bit PNG"
            )
        return Image.fromarray((values / top * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
