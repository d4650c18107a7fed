"""Turning a head around: views from a circle of cameras, and animations of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ConfigError
from lrdiff.files import replacing
from lrdiff.images import to_image
from lrdiff.triplane.cameras import rays, split_camera
from lrdiff.triplane.generator import TriplaneGenerator, View
from lrdiff.triplane.personal import orbit

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
VIDEO = ".mp4"
QUALITY = "18"
"""Constant rate factor of H.264; about where people stop seeing a difference."""


def swing(generator: TriplaneGenerator, frames: int, yaw: float, pitch: float = 0.0) -> Tensor:
    """Return the cameras [frames, 25] of a turn whose end meets its start.

    yaw(f) = yaw sin(2 pi f / frames), and pitch(f) = pitch cos(2 pi f / frames).

    Args:
        generator: Its pivot is the centre.
        frames: How many cameras.
        yaw: Widest yaw, in radians.
        pitch: Widest pitch, in radians.

    Raises:
        ConfigError: There are fewer than two frames.
    """
    if frames < 2:
        raise ConfigError(f"frames: {frames} is no turn; give at least 2")
    angle = 2 * math.pi * torch.arange(frames) / frames
    return orbit(generator, torch.stack([yaw * angle.sin(), pitch * angle.cos()], 1))


@torch.no_grad()
def turntable(
    generator: TriplaneGenerator, ws: Tensor, cameras: Tensor, other: Tensor | None = None, chunk: int | None = None
) -> Iterator[View]:
    """Yield views of one head from cameras, one by one.

    The planes are made once, and each frame only renders them; with `other` they are made for each frame.

    Args:
        generator: With or without an adapter.
        ws: [1, latents, w] or [1, w].
        cameras: [F, 25].
        other: Latents of the same shape, into which the head changes until the middle of the turn, and back.
        chunk: Rays at a time.
    """
    planes = generator.planes(ws) if other is None else None
    for frame, camera in enumerate(cameras.to(ws.device).split(1)):
        share = 0.5 - 0.5 * math.cos(2 * math.pi * frame / len(cameras))
        shown = ws if other is None else ws.lerp(other, share)
        yield generator.view(shown, camera, planes=planes, chunk=chunk)


def depth_picture(view: View, generator: TriplaneGenerator) -> Tensor:
    """Return depth as grey [B, 3, s, s] in [-1, 1]: near is white, the far end black."""
    render = generator.config.render
    share = (render.far - view.depth) / (render.far - render.near)
    return (share.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)


def normal_picture(view: View, camera: Tensor) -> Tensor:
    """Return normals of the surface as colours [B, 3, s, s] in [-1, 1]: right is red, up green, towards us blue.

    Points are put along the rays at their mean depths; the normal is the cross product of their differences to the
    neighbours on the right and below. Where a ray is stopped by less than half, the picture is white.

    Args:
        view: What the camera sees.
        camera: [B, 25].
    """
    side = view.depth.shape[-1]
    origins, directions = rays(camera, side)
    points = (origins + view.depth.flatten(1)[..., None] * directions).reshape(-1, side, side, 3)
    right, below = (torch.diff(points, dim=d, append=points.narrow(d, side - 1, 1)) for d in (2, 1))
    normal = functional.normalize(torch.linalg.cross(below, right), dim=-1)
    pose, _ = split_camera(camera)
    seen = (normal @ pose[:, None, :3, :3]) * normal.new_tensor([1.0, -1.0, -1.0])
    # The last row and column have no further neighbour.
    seen[:, -1], seen[:, :, -1] = seen[:, -2], seen[:, :, -2]
    return torch.where(view.opacity > 0.5, seen.permute(0, 3, 1, 2), 1.0)


def write_animation(path: Path, frames: list[Tensor], rate: float = 20.0) -> None:
    """Write frames [3, H, W] in [-1, 1] as an endless GIF or WebP, or as MP4 (H.264).

    A video has even sides; one that has not gets its last row or column twice.

    Raises:
        ConfigError: The ending is none of these, there are no frames, or the file cannot be written.
    """
    kind = FORMATS.get(path.suffix.lower())
    if (kind is None and path.suffix.lower() != VIDEO) or not frames:
        raise ConfigError(f"{path}: give frames, and a name that ends in {', '.join(FORMATS)} or {VIDEO}")
    pictures: list[Image.Image] = [to_image(frame.clamp(-1, 1).cpu()) for frame in frames]
    try:
        with replacing(path) as temporary:
            if kind is None:
                _write_video(temporary, pictures, rate)
                return
            pictures[0].save(
                temporary, kind, save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0
            )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}); choose another place") from error


def _write_video(path: Path, pictures: list[Image.Image], rate: float) -> None:
    import av

    wide, high = (size + size % 2 for size in pictures[0].size)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options={"crf": QUALITY})
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        for picture in pictures:
            pixels = np.asarray(picture)
            pixels = np.pad(pixels, ((0, high - picture.height), (0, wide - picture.width), (0, 0)), "edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
