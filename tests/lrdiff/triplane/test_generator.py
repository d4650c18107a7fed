"""The generator as a whole: shapes, determinism, gradients, truncation, refusals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from lrdiff.errors import ShapeError
from lrdiff.triplane import TriplaneGenerator
from lrdiff.triplane.cameras import frontal, look_at
from lrdiff.triplane.config import SuperresConfig, TriplaneConfig
from lrdiff.triplane.generator import Window
from tests.lrdiff.triplane.tiny import MINI, TINY, tiny


def test_a_view_has_picture_raw_depth_and_opacity() -> None:
    seen = tiny()(torch.randn(2, 8), frontal(TINY, 2))
    assert seen.image.shape == (2, 3, 32, 32)
    assert seen.raw.shape == (2, 3, 8, 8)
    assert seen.depth.shape == seen.opacity.shape == (2, 1, 8, 8)
    assert bool((seen.depth >= TINY.render.near).all())
    assert bool((seen.depth <= TINY.render.far).all())
    assert bool(((seen.opacity >= 0) & (seen.opacity <= 1 + 1e-5)).all())


def test_without_superresolution_the_picture_is_the_raw_one() -> None:
    seen = tiny(config=MINI)(torch.randn(1, 24), frontal(MINI))
    assert seen.image.shape == (1, 3, 32, 32)
    assert torch.equal(seen.image, seen.raw)


def test_views_are_bit_identical_and_jitter_is_seeded() -> None:
    generator = tiny()
    ws, camera = generator.mapping(torch.randn(1, 8), frontal(TINY)), frontal(TINY)
    drawn = [generator.view(ws, camera, rng=torch.Generator().manual_seed(seed)).image for seed in (0, 0, 1)]
    assert torch.equal(generator.view(ws, camera).image, generator.view(ws, camera).image)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_chunks_and_shared_planes_change_nothing() -> None:
    generator = tiny()
    ws = generator.mapping(torch.randn(1, 8), frontal(TINY))
    camera = look_at(torch.tensor([0.3]), torch.tensor([0.1]), 2.7, TINY.focal)
    whole = generator.view(ws, camera)
    parts = generator.view(ws, camera, planes=generator.planes(ws), chunk=5)
    torch.testing.assert_close(parts.image, whole.image)
    torch.testing.assert_close(parts.depth, whole.depth)


def test_a_window_is_a_part_of_the_picture() -> None:
    generator = tiny(config=dataclasses.replace(MINI, superres=SuperresConfig(32, (6, 6), up=(False, True))))
    ws, camera = torch.randn(1, MINI.w), look_at(torch.tensor([0.3]), torch.zeros(1), MINI.radius, MINI.focal)
    whole, window = generator.view(ws, camera), Window(4, 8, 20)
    part = generator.view(ws, camera, window=window)
    torch.testing.assert_close(part.raw, whole.raw[..., 4:24, 8:28], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.depth, whole.depth[..., 4:24, 8:28], atol=1e-5, rtol=0)
    cut = window.crop(whole.image, 32)
    assert part.image.shape == cut.shape == (1, 3, 40, 40)
    inner = (..., slice(10, -10), slice(10, -10))
    torch.testing.assert_close(part.image[inner], cut[inner], atol=1e-4, rtol=0)
    flipped = window.mirrored(32).crop(whole.image.flip(3), 32)
    assert torch.equal(flipped.flip(3), cut)
    with pytest.raises(ShapeError, match="does not lie inside"):
        generator.view(ws, camera, window=Window(20, 0, 20))
    with pytest.raises(ShapeError, match="rendered side of 8"):
        tiny().view(torch.randn(1, TINY.w), frontal(TINY), side=16, window=window)


def test_every_parameter_takes_part_and_gradients_agree_with_differences() -> None:
    generator = tiny().double()
    z, camera = torch.randn(1, 8, dtype=torch.float64), frontal(TINY).double()
    loss = (generator(z, camera).image ** 2).mean()
    loss.backward()
    for name, parameter in generator.named_parameters():
        silent = name.startswith("superresolution") and name.endswith("noise_strength")
        assert (parameter.grad is None) == silent, name
        assert silent or bool(torch.isfinite(parameter.grad).all())  # pyright: ignore[reportArgumentType]
    for name in ("backbone.synthesis.b8.conv0.weight", "decoder.net.0.bias", "superresolution.block1.conv0.bias"):
        parameter = generator.get_parameter(name)
        assert parameter.grad is not None
        direction = torch.randn_like(parameter)
        slope, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * slope * direction
                values.append((generator(z, camera).image ** 2).mean())
                parameter -= sign * slope * direction
        difference = float(values[0] - values[1]) / (2 * slope)
        # Importance samples move with the weights and carry no gradient, so the agreement is close and not exact.
        assert float((parameter.grad * direction).sum()) == pytest.approx(difference, rel=0.05, abs=1e-4), name


def test_truncation_moves_towards_the_mean_latent() -> None:
    generator = tiny()
    generator.backbone.mapping.get_buffer("w_avg").copy_(torch.arange(16.0))
    z, camera = torch.randn(2, 8), frontal(TINY, 2)
    full, half, none = (generator.mapping(z, camera, psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, torch.arange(16.0).expand(2, 6, 16))
    torch.testing.assert_close(half, (full + none) / 2)


def test_the_camera_conditions_the_mapping_only_where_asked() -> None:
    z = torch.randn(1, 8)
    cameras = [look_at(torch.tensor([yaw]), torch.zeros(1), 2.7, TINY.focal) for yaw in (0.0, 0.5)]
    generator = tiny()
    assert not torch.equal(*(generator.mapping(z, camera) for camera in cameras))
    with pytest.raises(ShapeError, match="camera"):
        generator.mapping(z)
    silent = tiny(config=dataclasses.replace(TINY, condition=False))
    assert torch.equal(*(silent.mapping(z, camera) for camera in cameras))
    assert torch.equal(silent.mapping(z), silent.mapping(z, cameras[1]))


def test_gains_of_a_file_win_over_those_that_follow_from_sizes() -> None:
    config = dataclasses.replace(TINY, gains={"backbone.mapping.embed": (0.5, 0.25)})
    generator = TriplaneGenerator(config)
    embed = generator.backbone.mapping.embed
    x = torch.randn(3, 25)
    torch.testing.assert_close(embed(x), x @ embed.weight.T * 0.5 + embed.bias * 0.25)
    with pytest.raises(ShapeError, match="no fully connected layer"):
        TriplaneGenerator(dataclasses.replace(TINY, gains={"nosuch": (1.0, 1.0)}))


def test_wrong_shapes_are_refused() -> None:
    generator = tiny()
    with pytest.raises(ShapeError, match=r"\[B, 8\]"):
        generator.mapping(torch.randn(1, 9), frontal(TINY))
    with pytest.raises(ShapeError, match=r"\[B, 6, 16\]"):
        generator.planes(torch.randn(1, 5, 16))


@pytest.mark.parametrize("up", [(True, True), (False, True)])
def test_both_forms_of_superresolution_reach_their_side(up: tuple[bool, bool]) -> None:
    assert TINY.superres is not None
    config: TriplaneConfig = dataclasses.replace(TINY, superres=dataclasses.replace(TINY.superres, up=up))
    assert tiny(config=config)(torch.randn(1, 8), frontal(config)).image.shape[-1] == config.side


def test_reading_a_generator_does_not_import_the_compiler() -> None:
    """Which takes several times as long as the reading itself."""
    code = (
        "import sys\n"
        "from lrdiff.triplane.store import find, load\n"
        "load(find('heads'))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
