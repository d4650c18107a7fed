"""A head turned around, and its animation on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lrdiff.errors import ConfigError
from lrdiff.triplane.orbits import depth_picture, turntable, write_animation
from lrdiff.triplane.personal import orbit
from tests.lrdiff.triplane.tiny import MINI, tiny


def test_a_turn_is_the_views_from_its_cameras() -> None:
    generator = tiny(config=MINI)
    ws = generator.mapping(torch.randn(1, 24))
    views = list(turntable(generator, ws, 4, yaw=0.5, pitch=0.2))
    assert len(views) == 4
    expected = generator.view(ws, orbit(generator, torch.tensor([[0.5, 0.0]]))).image
    torch.testing.assert_close(views[1].image, expected, atol=1e-4, rtol=0)
    grey = depth_picture(views[0], generator)
    assert grey.shape == (1, 3, 32, 32)
    assert -1 <= float(grey.min()) <= float(grey.max()) <= 1
    near = views[0].depth.flatten().argmin()
    assert float(grey[0, 0].flatten()[near]) == float(grey.max()), "near is white"
    with pytest.raises(ConfigError, match="frames: 1"):
        list(turntable(generator, ws, 1, yaw=0.5))


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animations_hold_every_frame(ending: str, tmp_path: Path) -> None:
    frames = [torch.full((3, 12, 16), level) for level in (-1.0, 0.0, 1.0)]
    write_animation(tmp_path / f"a{ending}", frames)
    with Image.open(tmp_path / f"a{ending}") as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((16, 12), 3)
        image.seek(2)
        assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_other_endings_and_nothing_to_show_are_refused(tmp_path: Path) -> None:
    for path, frames in ((tmp_path / "a.mp4", [torch.zeros(3, 4, 4)]), (tmp_path / "a.gif", [])):
        with pytest.raises(ConfigError, match=r"\.gif or \.webp"):
            write_animation(path, frames)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_animation(tmp_path / "no" / "a.gif", [torch.zeros(3, 4, 4)])
