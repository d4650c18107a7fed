"""Turning a head around: views from a circle of cameras, and animations of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lrdiff.errors import ConfigError
from lrdiff.files import replacing
from lrdiff.images import to_image
from lrdiff.triplane.generator import TriplaneGenerator, View
from lrdiff.triplane.personal import orbit

FORMATS = {".gif": "GIF", ".webp": "WEBP"}


@torch.no_grad()
def turntable(
    generator: TriplaneGenerator, ws: Tensor, frames: int, yaw: float, pitch: float = 0.0, chunk: int | None = None
) -> Iterator[View]:
    """Yield views of one head from a swing of the camera, of which the end meets the start.

    The planes are made once; each frame only renders them. yaw(f) = yaw sin(2 pi f / frames), and pitch(f) =
    pitch cos(2 pi f / frames).

    Args:
        generator: With or without an adapter.
        ws: [1, latents, w] or [1, w].
        frames: How many views.
        yaw: Widest yaw, in radians.
        pitch: Widest pitch, in radians.
        chunk: Rays at a time.

    Raises:
        ConfigError: There are fewer than two frames.
    """
    if frames < 2:
        raise ConfigError(f"frames: {frames} is no turn; give at least 2")
    planes = generator.planes(ws)
    for frame in range(frames):
        angle = 2 * math.pi * frame / frames
        camera = orbit(generator, torch.tensor([[yaw * math.sin(angle), pitch * math.cos(angle)]])).to(ws.device)
        yield generator.view(ws, camera, planes=planes, chunk=chunk)


def depth_picture(view: View, generator: TriplaneGenerator) -> Tensor:
    """Return depth as grey [B, 3, s, s] in [-1, 1]: near is white, the far end black."""
    render = generator.config.render
    share = (render.far - view.depth) / (render.far - render.near)
    return (share.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)


def write_animation(path: Path, frames: list[Tensor], rate: float = 20.0) -> None:
    """Write frames [3, H, W] in [-1, 1] as an endless GIF or WebP.

    Raises:
        ConfigError: The ending is neither, there are no frames, or the file cannot be written.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or not frames:
        raise ConfigError(f"{path}: give frames, and a name that ends in {' or '.join(FORMATS)}")
    pictures: list[Image.Image] = [to_image(frame.clamp(-1, 1).cpu()) for frame in frames]
    try:
        with replacing(path) as temporary:
            pictures[0].save(
                temporary, kind, save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0
            )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}); choose another place") from error
