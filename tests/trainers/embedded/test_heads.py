"""The generator of heads learns from heads whose latents are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrdiff.errors import RunError
from lrdiff.rng import stream
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.store import load, load_directions
from lrdiff.world.heads import heads
from lrdiff.world.heads_outline import outline, tangent
from lrdiff.world.heads_render import eyes_at, look, orbit, orbit_rays, places_of, rays_through
from lrdiff.world.heads_shape import distance, ear, hair, jaw, skull
from tests.trainers.embedded.conftest import TINY_HEADS, micro_budget
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded import manifest
from trainers.embedded.budgets import BUDGETS
from trainers.embedded.heads import HeadsConfig, TrainHeads, compare
from trainers.embedded.heads_make import traits
from trainers.embedded.make import make
from trainers.engine import Engine
from trainers.loop import fit
from trainers.rundir import open_run

TINY = HeadsConfig.model_validate(TINY_HEADS)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_shipped_sizes_fit_into_16_mb(budget: str) -> None:
    with torch.device("meta"):
        generator = TriplaneGenerator(HeadsConfig(**BUDGETS[budget].heads[1].method).generator())
    assert 4 * sum(tensor.numel() for tensor in generator.state_dict().values()) < 16e6
    assert generator.config.side == 128
    assert generator.config.render.side == 64


def test_targets_are_what_the_world_shows() -> None:
    trainer = TrainHeads(TINY)
    batch = trainer.batch(0, stream(0, "batch", 0))
    colour, depth, _, hit, _ = look(heads(batch["z"]), batch["origins"], batch["directions"])
    assert torch.equal(colour, batch["colour"])
    assert torch.equal(depth, batch["depth"])
    assert 0.1 < float(hit.float().mean()) < 0.9
    assert float(depth[hit].min()) == pytest.approx(2.2, abs=0.3)
    yaw, pitch = torch.tensor([0.3]), torch.tensor([-0.1])
    middle = rays_through(yaw, pitch, torch.tensor([[[-0.25, 0.25]]]))
    torch.testing.assert_close(middle[1][0, 0], orbit_rays(yaw, pitch, 2)[1][0, 2], msg="lower left of four")


def test_rays_that_aim_at_the_face_meet_it() -> None:
    whole, aimed = (TrainHeads(TINY.model_copy(update={"face": share, "rays": 200})) for share in (0.0, 1.0))
    met = [float(trainer.batch(0, stream(0, "batch", 0))["hit"].float().mean()) for trainer in (whole, aimed)]
    assert met[0] < 0.7 < 0.85 < met[1]
    yaw, pitch, points = torch.tensor([0.4, -1.0]), torch.tensor([0.1, 0.3]), 0.3 * torch.randn(2, 5, 3)
    origins, directions = rays_through(yaw, pitch, places_of(yaw, pitch, points))
    assert float(torch.linalg.cross(points - origins, directions).norm(dim=-1).max()) < 1e-5, "rays meet their points"


def test_patches_are_pixels_of_the_picture_and_of_one_of_twice_the_side() -> None:
    trainer = TrainHeads(TINY)
    middle = torch.tensor([[[0.0, 0.0]], [[0.9, -0.9]]])
    raw, fine = trainer._patches(middle, stream(0, "patches"))
    size, side = TINY.patch, TINY.side
    pixels = (raw + 0.5) * side - 0.5
    torch.testing.assert_close(pixels, pixels.round())
    assert pixels[1].reshape(size, size, 2)[0, -1].tolist() == [side - 1, 0], "a patch stays inside the picture"
    within = (fine + 0.5) * 2 * side
    halves = within.floor().reshape(2, size, 2, size, 2, 2)
    torch.testing.assert_close((halves / 2).floor(), pixels.reshape(2, size, 1, size, 1, 2).expand_as(halves))
    person = heads(torch.randn(2, 24))
    aims = TrainHeads(TINY.model_copy(update={"eyes": 1.0}))._aims(person, 400, stream(0, "aims"))
    apart = (aims[..., 0].abs() - person.eye_x).abs() / person.eye_r
    assert float(apart.mean()) < 1.2, "they aim at the eyes"


def test_samples_of_a_ray_surround_the_known_surface() -> None:
    trainer = TrainHeads(TINY)
    depths = trainer._depths(torch.full((1, 2), 2.6), stream(0, "depths"))
    assert depths.shape == (1, 2, TINY.around + TINY.between)
    assert bool((depths.diff(dim=-1) >= 0).all())
    assert int(((depths - 2.6).abs() <= TINY.width).sum(-1).min()) >= TINY.around


def test_rays_that_miss_know_where_they_came_nearest() -> None:
    person = heads(torch.randn(3, 24, generator=stream(4, "z")))
    yaw = torch.tensor([0.0, 0.7, -1.0])
    origins, directions = orbit_rays(yaw, 0.1 * yaw, 24)
    seen = look(person, origins, directions)
    assert torch.equal(seen.nearest[seen.hit], seen.depth[seen.hit])
    missed = ~seen.hit
    along = torch.linspace(2.0, 3.6, 400)
    points = origins[:, :, None] + along[:, None] * directions[:, :, None]
    least = distance(person, points.flatten(1, 2)).reshape(*seen.hit.shape, -1).min(-1).values
    there = distance(person, origins + seen.nearest[..., None] * directions)
    close = missed & (least < 0.05)
    assert int(close.sum()) > 20, "some rays pass close by"
    assert float((there - least)[close].max()) < 0.01


@pytest.mark.parametrize("yaw", [0.0, 0.8, -1.1])
def test_outline_rays_pass_close_by(yaw: float) -> None:
    person = heads(torch.randn(4, 24, generator=stream(5, "z")))
    turns, level = torch.full((4,), yaw), torch.full((4,), 0.1)
    points = outline(person, eyes_at(turns, level), 200, stream(0, "outline"))
    assert points.shape == (4, 200, 3)
    rays = rays_through(turns, level, places_of(turns, level, points))
    seen = look(person, *rays)
    assert 0.1 < float(seen.hit.float().mean()) < 0.95, "they lie on both sides of the silhouette"
    gap = distance(person, rays[0] + seen.nearest[..., None] * rays[1])[~seen.hit]
    assert float((gap < 0.05).float().mean()) > 0.7, "rays that miss pass close by"


def test_tangent_points_lie_on_the_solid_and_rays_touch_it_there() -> None:
    person = heads(torch.randn(2, 24, generator=stream(6, "z")))
    eye = eyes_at(torch.tensor([0.3, -0.9]), torch.tensor([0.1, 0.2]))
    for solid in (skull(person), jaw(person), ear(person), hair(person)):
        points = tangent(solid, eye, torch.linspace(0, 6, 16).expand(2, -1))
        place = (points - solid.centre) / solid.radii
        torch.testing.assert_close(place.norm(dim=-1), torch.ones(2, 16))
        ray = (points - eye[:, None]) / solid.radii
        assert float((place * ray).sum(-1).abs().max()) < 1e-4, "the ray lies in the tangent plane"


def test_dense_matter_in_free_space_has_a_gradient_however_dense_it_is() -> None:
    trainer = TrainHeads(TINY)
    batch = trainer.batch(0, stream(0, "batch", 0))
    assert torch.equal(batch["clear"], distance(heads(batch["z"]), batch["points"]) > 0.03)
    assert 0.5 < float(batch["clear"].float().mean()) < 0.98, "some points lie in the head"
    assert float(batch["points"].abs().max()) == pytest.approx(0.7, abs=0.01)
    bias = trainer.generator.decoder.net[2].bias
    assert isinstance(bias, torch.Tensor)
    with torch.no_grad():
        bias[0] += 40
    planes = trainer.generator.planes(trainer.generator.mapping(batch["z"]))
    free = trainer._free(planes, batch["points"], batch["clear"])
    assert 35 < float(free.detach()) < 45
    (slope,) = torch.autograd.grad(free, bias)
    assert float(slope[0]) == pytest.approx(1.0)
    assert float(trainer._free(planes, batch["points"], torch.zeros_like(batch["clear"]))) == 0.0


def test_specks_beside_the_head_are_counted() -> None:
    trainer = TrainHeads(TINY)
    z, angles, meant = trainer.unseen_z, trainer.unseen_angles, trainer.unseen
    bias = trainer.generator.decoder.net[2].bias
    assert isinstance(bias, torch.Tensor)
    for change, share in ((-60.0, 0.0), (120.0, 1.0)):
        with torch.no_grad():
            bias[0] += change
        assert compare(trainer.generator, z, angles, meant)["specks_unseen"] == pytest.approx(share)


def test_it_learns_and_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    trainer = TrainHeads(TINY)
    loss, metrics = trainer(trainer.batch(0, stream(0, "batch", 0)), stream(0, "forward", 0))
    loss.backward()
    # The published super-resolution has strengths of a noise that it never adds.
    idle = [name for name, p in trainer.named_parameters() if p.grad is None]
    assert all(name.startswith("generator.superresolution.") and name.endswith("noise_strength") for name in idle)
    assert set(metrics) == {"psnr", "mask", "depth", "surface", "free", "finished"}
    torch.manual_seed(0)
    trainer = TrainHeads(TINY.model_copy(update={"superres": None}))
    before = trainer.evaluate(stream(0, "evaluate"))
    optim = OptimConfig(steps=60, lr=5e-3, warmup=3, beta2=0.99, clip=10.0)
    fit(trainer, optim, engine=Engine(PrecisionConfig(device="cpu")), seed=0)
    after = trainer.evaluate(stream(0, "evaluate"))
    assert after["psnr_unseen"] > before["psnr_unseen"] + 1.5, (before, after)
    assert after["mask_unseen"] < before["mask_unseen"]
    shown = trainer.preview(stream(0, "p"))
    assert {name: tuple(image.shape) for name, image in shown.items()} == dict.fromkeys(
        ("made", "meant"), (4, 3, 16, 16)
    )


def test_making_leaves_a_folder_with_directions_and_a_line_in_the_manifest(tmp_path: Path) -> None:
    folder = make("heads", budget=micro_budget(), assets=tmp_path / "assets", cache=tmp_path / "cache")
    made = load(folder)
    assert made.config == TINY.generator()
    z = torch.randn(200, 24, generator=stream(0, "z"))
    mean = made.backbone.mapping.get_buffer("w_avg")
    assert float(mean.abs().max()) > 0
    assert not torch.equal(made.mapping(z[:1]), made.mapping(2 * z[:1])), "the length of z counts"
    names = list(traits(z))
    assert {"smile", "skin_brightness", "light_from_right"} <= set(names)
    assert all(value.shape == mean.shape for value in load_directions(folder, names).values())
    runs = [open_run(tmp_path / "cache" / "micro" / f"heads-{stage}-3") for stage in (1, 2)]
    first, second = (load_file(r.checkpoint(r.checkpoint_steps()[-1]) / "weights.safetensors") for r in runs)
    assert runs[1].read()["config"]["method"]["start"] == str(runs[0].path)
    assert all(not torch.equal(second[name], value) for name, value in first.items() if value.numel() > 100)
    assert manifest.problems(tmp_path / "assets") == []
    assert manifest.read(tmp_path / "assets")["heads"]["seed"] == 3
    again = TrainHeads(TINY.model_copy(update={"start": folder})).generator.state_dict()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.items())
    for change in ({"hidden": 2 * TINY.hidden}, {"channels": (8, 8)}, {"superres": None}):
        with pytest.raises(RunError, match="its generator is another one"):
            TrainHeads(TINY.model_copy(update={"start": folder, **change}))


def test_the_renderer_shows_the_same_through_single_rays_and_pictures() -> None:
    person = heads(torch.randn(1, 24, generator=stream(2, "z")))
    yaw = torch.tensor([0.4])
    whole = orbit(person, yaw, yaw, 8, 1)
    colour, depth, _, hit, _ = look(person, *orbit_rays(yaw, yaw, 8))
    torch.testing.assert_close(whole.image, (2 * colour - 1).transpose(1, 2).reshape(1, 3, 8, 8))
    assert torch.equal(whole.depth.flatten(1), depth)
    assert torch.equal(whole.mask.flatten(1) > 0, hit)
