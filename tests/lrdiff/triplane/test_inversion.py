"""Anchors of pictures whose latents and cameras are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.rng import stream
from lrdiff.triplane.cameras import look_at, mirrored, rays, split_camera
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.inversion import InversionConfig, every_other, invert, latent_space
from lrdiff.triplane.losses import identity_symmetry, pixel_symmetry, psnr, pyramid
from lrdiff.triplane.poses import corrected, estimate_cameras, yaw_pitch
from lrdiff.triplane.store import find, load
from lrdiff.world.heads import heads
from lrdiff.world.heads_render import orbit
from tests.lrdiff.triplane.tiny import MINI, tiny

SMALL = dataclasses.replace(
    MINI, w=32, channels=(32, 32, 16), focal=3.2, render=dataclasses.replace(MINI.render, coarse=12, side=16)
)


@pytest.fixture(scope="module")
def generator() -> TriplaneGenerator:
    made = tiny(seed=3, config=SMALL)
    with torch.no_grad():
        made.decoder.net[2].bias[0] += 1.0  # denser, so that poses can be told apart
        made.decoder.net[2].weight *= 3.0
    return made.requires_grad_(False)


def shots(generator: TriplaneGenerator, yaws: list[float], pitches: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures of other people than the mean one, and their cameras."""
    z = torch.randn(1, 24, generator=torch.Generator().manual_seed(5)).expand(len(yaws), -1)
    cameras = look_at(torch.tensor(yaws), torch.tensor(pitches), SMALL.radius, SMALL.focal)
    return generator.view(generator.mapping(z), cameras).image, cameras


def test_anchors_of_known_cameras_come_near_the_pictures(generator: TriplaneGenerator) -> None:
    photos, cameras = shots(generator, [0.0, 0.5, -0.4], [0.0, 0.1, -0.1])
    mean, _ = latent_space(generator, 2000, 0)
    start = psnr(generator.view(mean.expand(3, -1), cameras).image, photos)
    losses: list[float] = []
    found = invert(
        generator, photos, cameras, InversionConfig(steps=60, cameras="given"), lambda _, loss: losses.append(loss)
    )
    assert found.ws.shape == (3, 1, 32)
    assert torch.equal(found.cameras, cameras)
    assert bool((found.psnr > start + 6).all()), (start, found.psnr)
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in generator.parameters())


def test_the_extended_space_fits_at_least_as_well_and_runs_repeat(generator: TriplaneGenerator) -> None:
    photos, cameras = shots(generator, [0.3], [0.0])
    config = InversionConfig(steps=25, cameras="given", extended=True)
    one, two = (invert(generator, photos, cameras, config) for _ in range(2))
    assert one.ws.shape == (1, SMALL.latents, 32)
    assert torch.equal(one.ws, two.ws)
    plain = invert(generator, photos, cameras, dataclasses.replace(config, extended=False))
    assert float(one.psnr) > float(plain.psnr) - 1


def test_rough_cameras_of_the_mean_head_are_corrected(generator: TriplaneGenerator) -> None:
    """With weights drawn at random a latent can also turn a head, so only the start's own pose is well-defined."""
    cameras = look_at(torch.tensor([0.0, 0.5, -0.4, 0.2]), torch.tensor([0.0, 0.1, -0.1, 0.2]), 2.7, SMALL.focal)
    mean, _ = latent_space(generator, 2000, 0)
    photos = generator.view(mean.expand(4, -1), cameras).image
    off = torch.tensor([[0.1, -0.06], [-0.1, 0.06], [0.08, 0.08], [-0.08, 0.08]])
    rough = corrected(cameras, off, generator)
    found = invert(generator, photos, rough, InversionConfig(steps=60, cameras="refine", lr=0.003))
    truth = yaw_pitch(cameras, generator)
    before, after = ((yaw_pitch(c, generator) - truth).abs().mean() for c in (rough, found.cameras))
    assert float(after) < 0.2 * float(before), (before, after)


def test_unknown_cameras_of_the_mean_head_are_found(generator: TriplaneGenerator) -> None:
    yaws, pitches = [-0.9, 0.0, 0.6], [0.1, -0.1, 0.0]
    cameras = look_at(torch.tensor(yaws), torch.tensor(pitches), SMALL.radius, SMALL.focal)
    mean, _ = latent_space(generator, 2000, 0)
    photos = generator.view(mean.expand(3, -1), cameras).image
    truth, errors = torch.tensor([yaws, pitches]).T, []
    for seed in range(3):  # the heads that poses are read off are drawn anew, and some lie nearer than others
        found = invert(generator, photos, None, InversionConfig(steps=40, seed=seed))
        errors.append((yaw_pitch(found.cameras, generator) - truth).abs())
    mean = torch.cat(errors).mean(0)
    assert float(mean[0]) < 0.1, errors
    assert float(mean[1]) < 0.04, errors


def test_photos_of_one_person_agree(generator: TriplaneGenerator) -> None:
    """Each photo hides a part of the head behind noise, as marks do that the generator cannot draw."""
    photos, cameras = shots(generator, [0.0, 0.5, -0.4], [0.0, 0.1, -0.1])
    hidden = photos + 0.3 * torch.randn(photos.shape, generator=torch.Generator().manual_seed(1))
    clean, spread = [], []
    for together in (0.0, 3.0):
        config = InversionConfig(steps=60, cameras="given", together=together)
        found = invert(generator, hidden.clamp(-1, 1), cameras, config)
        spread.append(float(found.ws.std(0).mean()))
        clean.append(float(psnr(generator.view(found.ws[:, 0], cameras.flip(0)).image, photos.flip(0)).mean()))
    assert spread[1] < 0.3 * spread[0], spread
    assert clean[1] > clean[0] + 0.5, clean
    with pytest.raises(ConfigError, match="together -1"):
        InversionConfig(together=-1.0)


def test_every_other_pixel_is_seen_by_the_cameras_that_come_with_it(generator: TriplaneGenerator) -> None:
    _, cameras = shots(generator, [0.0, 0.5, -0.4], [0.0, 0.1, -0.1])
    numbers = torch.arange(256.0).reshape(1, 1, 16, 16).expand(3, 3, -1, -1)
    whole, seen = rays(cameras, 16)[1], set()
    for draw in range(20):
        moved, taken = every_other(cameras, numbers, 4, stream(draw, "grid"))
        which = taken[:, 0].flatten(1).long()
        torch.testing.assert_close(rays(moved, 4)[1], whole.gather(1, which[..., None].expand(-1, -1, 3)))
        assert taken[0, 0].diff(dim=1).eq(4).all()
        assert taken[0, 0].diff(dim=0).eq(64).all()
        seen |= {int(first) for first in which[:, 0]}
    assert len(seen) == 16, "it begins anywhere in a cell"
    moved, taken = every_other(cameras, numbers, 16, stream(0, "grid"))
    assert torch.equal(moved, cameras)
    assert torch.equal(taken, numbers)


def test_a_grid_of_pixels_finds_what_whole_pictures_find(generator: TriplaneGenerator) -> None:
    photos, cameras = shots(generator, [0.0, 0.5, -0.4], [0.0, 0.1, -0.1])
    whole, grid = (
        float(invert(generator, photos, cameras, InversionConfig(steps=60, cameras="given", side=side)).psnr.mean())
        for side in (16, 4)
    )
    assert grid > whole - 2.0, (grid, whole)


def test_the_latent_space_has_the_covariance_of_w(generator: TriplaneGenerator) -> None:
    mean, root = latent_space(generator, 4000, 1)
    ws = generator.mapping(torch.randn(4000, 24, generator=torch.Generator().manual_seed(2)))[:, 0]
    torch.testing.assert_close(mean, ws.mean(0), atol=0.1, rtol=0)
    wanted = torch.cov(ws.T)
    assert float((root @ root.T - wanted).norm() / wanted.norm()) < 0.15


def test_cameras_of_heads_that_were_never_seen_are_read_off_the_shipped_generators_own() -> None:
    shipped = load(find("heads")).requires_grad_(False)
    angles = (torch.rand(12, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1) * torch.tensor([1.0, 0.3])
    people = heads(torch.randn(12, 24, generator=torch.Generator().manual_seed(4))).marked(glasses=True)
    photos = orbit(people, angles[:, 0], angles[:, 1], 24).image
    found = yaw_pitch(estimate_cameras(shipped, photos, 1.1, 0.35, 0), shipped)
    error = (found - angles).abs().mean(0)
    assert float(error[0]) < 0.12, error
    assert float(error[1]) < 0.1, error


def test_corrections_turn_around_the_pivot(generator: TriplaneGenerator) -> None:
    yaw, pitch = torch.tensor([0.3, -0.5]), torch.tensor([0.1, -0.2])
    camera = look_at(yaw, pitch, SMALL.radius, SMALL.focal)
    small = torch.tensor([[0.01, 0.0], [0.0, 0.01]])
    turned = corrected(camera, small, generator)
    torch.testing.assert_close(
        turned, look_at(yaw + small[:, 0], pitch + small[:, 1], 2.7, SMALL.focal), atol=1e-4, rtol=0
    )
    far = corrected(camera, torch.full((2, 2), 9.0), generator)
    assert float((yaw_pitch(far, generator) - yaw_pitch(camera, generator)).abs().max()) < 0.26
    torch.testing.assert_close(split_camera(far)[0][:, :3, 3].norm(dim=1), torch.full((2,), 2.7))


def test_wrong_inputs_are_refused(generator: TriplaneGenerator) -> None:
    photos, cameras = shots(generator, [0.0], [0.0])
    with pytest.raises(ShapeError, match=r"\[N, 3, 16, 16\]"):
        invert(generator, photos[..., :8], cameras, InversionConfig())
    with pytest.raises(ShapeError, match="2 cameras for 1 photos"):
        invert(generator, photos, cameras.repeat(2, 1), InversionConfig())
    with pytest.raises(ConfigError, match="there are none"):
        invert(generator, photos, None, InversionConfig(cameras="refine"))
    with pytest.raises(ConfigError, match="'maybe'"):
        InversionConfig(cameras="maybe")
    with pytest.raises(ConfigError, match="side 6 does not divide the rendered side 16"):
        invert(generator, photos, cameras, InversionConfig(side=6, cameras="given"))


def test_symmetry_losses_vanish_for_symmetric_heads_only(generator: TriplaneGenerator) -> None:
    cameras = look_at(torch.tensor([0.4]), torch.tensor([0.1]), SMALL.radius, SMALL.focal)
    ws = generator.mapping(torch.randn(1, 24))
    planes = generator.planes(ws)
    # Planes xy and xz have x along their columns; a plane yz says nothing of x.
    even = torch.stack([(p + p.flip(-1)) / 2 if i < 2 else p for i, p in enumerate(planes.unbind(1))], 1)

    def views(made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(generator.view(ws, c, planes=made).image for c in (cameras, mirrored(cameras)))  # pyright: ignore

    def embed(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    assert float(pixel_symmetry(*views(even))) < 1e-5
    assert float(identity_symmetry(embed, *views(even))) < 1e-5
    assert float(pixel_symmetry(*views(planes))) > 1e-3
    assert float(identity_symmetry(embed, *views(planes))) > 1e-4


def test_the_confidence_leaves_strong_differences_alone() -> None:
    one, other = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    one[..., :4] = 2.0
    one.requires_grad_(True)
    pixel_symmetry(one, other, 0.25).backward()
    mild = torch.full((1, 3, 8, 8), 0.1, requires_grad=True)
    pixel_symmetry(mild, other, 0.25).backward()
    assert one.grad is not None
    assert mild.grad is not None
    assert float(one.grad.abs().max()) < 0.01 * float(mild.grad.abs().max())


def test_pyramid_and_psnr_by_hand() -> None:
    one, other = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2)
    assert float(pyramid(one, other)) == pytest.approx(0.2)
    assert float(psnr(one, other)) == pytest.approx(20.0)  # 0.2 of a range of 2
