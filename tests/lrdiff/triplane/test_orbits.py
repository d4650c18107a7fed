"""A head turned around, and its animation on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from lrdiff.errors import ConfigError
from lrdiff.triplane.cameras import rays
from lrdiff.triplane.generator import View
from lrdiff.triplane.orbits import depth_picture, normal_picture, swing, turntable, write_animation
from lrdiff.triplane.personal import orbit
from tests.lrdiff.triplane.tiny import MINI, tiny


def test_a_turn_is_the_views_from_its_cameras() -> None:
    generator = tiny(config=MINI)
    ws = generator.mapping(torch.randn(1, 24))
    cameras = swing(generator, 4, yaw=0.5, pitch=0.2)
    views = list(turntable(generator, ws, cameras))
    assert len(views) == 4
    expected = generator.view(ws, orbit(generator, torch.tensor([[0.5, 0.0]]))).image
    torch.testing.assert_close(views[1].image, expected, atol=1e-4, rtol=0)
    grey = depth_picture(views[0], generator)
    assert grey.shape == (1, 3, 32, 32)
    assert -1 <= float(grey.min()) <= float(grey.max()) <= 1
    near = views[0].depth.flatten().argmin()
    assert float(grey[0, 0].flatten()[near]) == float(grey.max()), "near is white"
    other = generator.mapping(torch.randn(1, 24))
    between = list(turntable(generator, ws, cameras, other))
    torch.testing.assert_close(between[0].image, views[0].image, atol=1e-4, rtol=0)
    expected = generator.view(other, cameras[2:3]).image
    torch.testing.assert_close(between[2].image, expected, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="frames: 1"):
        swing(generator, 1, yaw=0.5)


def test_normals_of_a_sphere_point_away_from_its_middle() -> None:
    config = dataclasses.replace(MINI.render, side=48)
    generator = tiny(config=dataclasses.replace(MINI, render=config))
    camera = orbit(generator, torch.tensor([[0.4, 0.3]]))
    origins, directions = rays(camera, 48)
    radius, along = 0.35, (origins * directions).sum(-1)
    inside = along.square() - origins.square().sum(-1) + radius**2
    hit = inside > 0
    depth = torch.where(hit, -along - inside.clamp_min(0).sqrt(), 3.4).reshape(1, 1, 48, 48)
    view = View(torch.zeros(1, 3, 48, 48), torch.zeros(1, 3, 48, 48), depth, hit.float().reshape(1, 1, 48, 48))
    shown = normal_picture(view, camera)
    assert bool((shown[:, :, 0, 0] == 1).all()), "white beside the sphere"
    torch.testing.assert_close(shown[0, :, 24, 24], torch.tensor([0.0, 0.0, 1.0]), atol=0.1, rtol=0)
    assert float(shown[0, 0, 24, 36]) > 0.4 > float(shown[0, 0, 24, 12]) + 0.8, "right is red"
    assert float(shown[0, 1, 12, 24]) > 0.4 > float(shown[0, 1, 36, 24]) + 0.8, "up is green"


def test_a_video_holds_every_frame_and_has_even_sides(tmp_path: Path) -> None:
    frames = [torch.full((3, 15, 17), level) for level in (-1.0, 0.0, 1.0)]
    write_animation(tmp_path / "a.mp4", frames, rate=12.5)
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate or 0)) == ("h264", 12.5)
        seen = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert [picture.shape for picture in seen] == 3 * [(16, 18, 3)]
    assert [round(float(picture.mean()) / 127.5) for picture in seen] == [0, 1, 2]


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animations_hold_every_frame(ending: str, tmp_path: Path) -> None:
    frames = [torch.full((3, 12, 16), level) for level in (-1.0, 0.0, 1.0)]
    write_animation(tmp_path / f"a{ending}", frames)
    with Image.open(tmp_path / f"a{ending}") as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((16, 12), 3)
        image.seek(2)
        assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_other_endings_and_nothing_to_show_are_refused(tmp_path: Path) -> None:
    for path, frames in ((tmp_path / "a.avi", [torch.zeros(3, 4, 4)]), (tmp_path / "a.gif", [])):
        with pytest.raises(ConfigError, match=r"\.gif, \.webp or \.mp4"):
            write_animation(path, frames)
    for ending in (".gif", ".mp4"):
        with pytest.raises(ConfigError, match="cannot be written"):
            write_animation(tmp_path / "no" / f"a{ending}", [torch.zeros(3, 4, 4)])
