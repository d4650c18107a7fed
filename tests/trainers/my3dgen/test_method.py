"""The method on a small generator: what learns, what stays, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, ConfigError, DataError, ModelError
from lrdiff.images import save_png
from lrdiff.rng import stream
from lrdiff.triplane.cameras import look_at, mirrored
from lrdiff.triplane.personal import ANCHORS, CAMERAS, wear
from lrdiff.triplane.store import fingerprint, load
from tests.networks import arcface_state, lpips_state, write
from tests.trainers.my3dgen.conftest import YAWS, Studio
from trainers.loop import fit
from trainers.my3dgen.photos import read_cameras


def test_the_adapter_learns_what_anchors_cannot_show(studio: Studio) -> None:
    trainer, config, engine = studio.method(optim__steps=60, optim__lr=0.01, method__r=2, method__anchor_steps=40)
    before = trainer.evaluate(stream(0, "evaluate"))["psnr_photos"]
    fit(trainer, config.optim, engine=engine, seed=0)
    after = trainer.evaluate(stream(0, "evaluate"))["psnr_photos"]
    assert after > before + 2, (before, after)


@pytest.mark.parametrize("decoder", [True, False])
def test_only_the_adapter_learns_anchors_and_mapping_stay(studio: Studio, decoder: bool) -> None:
    symmetry = {"method__symmetry": 0.5, "method__symmetry_form": "pixels", "method__symmetry_every": 1}
    trainer, config, engine = studio.method(**symmetry, method__decoder=decoder)
    base = load_file(studio.model / "generator.safetensors")
    anchors = trainer.anchors.ws.clone()
    declared = {id(p) for group in trainer.param_groups() for p in group.params}
    assert declared == {id(p) for p in trainer.parameters() if p.requires_grad}
    loss, metrics = trainer(trainer.batch(0, stream(0, "batch", 0)), stream(0, "forward", 0))
    loss.backward()
    assert {id(p) for p in trainer.parameters() if p.grad is not None} == declared
    assert set(metrics) == {"psnr", "symmetry"}
    trainer.zero_grad()
    fit(trainer, config.optim, engine=engine, seed=0)
    assert torch.equal(trainer.anchors.ws, anchors)
    state = trainer.generator.state_dict()
    extras = set(trainer.personal.before)
    assert all(torch.equal(state[name], value) for name, value in base.items() if name not in extras)
    assert any(not torch.equal(state[name], base[name]) for name in extras)
    assert trainer.describe()[0].endswith(f"{'mapping' if decoder else 'mapping and decoder'} frozen, 16 px")
    inside = {name for name in base if name.startswith("decoder.")}
    assert inside & extras == (inside if decoder else set())
    assert all(torch.equal(state[name], base[name]) != decoder for name in inside)


def test_mirrored_photos_are_learned_from_and_not_kept(studio: Studio) -> None:
    plain, _, _ = studio.method()
    trainer, config, engine = studio.method(method__symmetry=0.25, data__batch_size=16)
    count = len(plain.photos)
    assert torch.equal(trainer.pictures, torch.cat([plain.photos, plain.photos.flip(3)]))
    assert len(trainer.learned.ws) == 2 * count
    assert torch.equal(trainer.anchors.ws, trainer.learned.ws[:count])
    batch = trainer.batch(0, stream(0, "batch", 0))
    mirrors = plain.photos.flip(3)
    flipped = torch.tensor([any(torch.equal(shown, one) for one in mirrors) for shown in batch["photos"]])
    assert 0 < int(flipped.sum()) < len(flipped)
    assert torch.equal(batch["weight"], torch.where(flipped, 0.25, 1.0))
    fit(trainer, config.optim, engine=engine, seed=0)
    assert trainer.artifact().tensors[ANCHORS].shape == plain.artifact().tensors[ANCHORS].shape


def test_cameras_of_mirrored_photos_are_mirrored(studio: Studio, tmp_path: Path) -> None:
    plain, _, _ = studio.method()
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps(dict(zip(plain.names, plain.anchors.cameras.tolist(), strict=True))))
    trainer, _, _ = studio.method(method__symmetry=1.0, method__cameras=str(file), method__refine=False)
    count = len(plain.photos)
    torch.testing.assert_close(trainer.learned.cameras[:count], plain.anchors.cameras)
    torch.testing.assert_close(trainer.learned.cameras[count:], mirrored(plain.anchors.cameras))


def test_the_start_changes_nothing(studio: Studio) -> None:
    trainer, _, _ = studio.method()
    fresh = load(studio.model)
    ws = torch.randn(1, fresh.config.w)
    camera = trainer.anchors.cameras[:1]
    assert torch.equal(trainer.generator.view(ws, camera).image, fresh.view(ws, camera).image)


def test_the_saved_adapter_on_a_fresh_generator_is_what_was_trained(studio: Studio, tmp_path: Path) -> None:
    trainer, config, engine = studio.method(optim__lr=0.05)
    fit(trainer, config.optim, engine=engine, seed=0)
    trainer.artifact().save(tmp_path / "a.safetensors")
    artifact = Artifact.load(tmp_path / "a.safetensors")
    fresh = load(studio.model)
    personal, anchors = wear(fresh, fingerprint(studio.model), artifact)
    assert personal.targets == trainer.personal.targets
    ws = anchors.ws.expand(-1, fresh.config.latents, -1)
    shown = fresh.view(ws, anchors.cameras).image
    assert torch.equal(shown, trainer.generator.view(ws, anchors.cameras).image)
    base = load(studio.model)
    assert float((shown - base.view(ws, anchors.cameras).image).detach().abs().max()) > 1e-3
    personal.remove()
    assert torch.equal(fresh.view(ws, anchors.cameras).image, base.view(ws, anchors.cameras).image)
    with pytest.raises(ArtifactError, match=r"made for generator .* not for 0123"):
        wear(fresh, "0123456789abcdef", artifact)
    broken = Artifact({k: v for k, v in artifact.tensors.items() if k != ANCHORS}, artifact.header)
    with pytest.raises(ArtifactError, match=r"no anchors\.ws"):
        wear(fresh, fingerprint(studio.model), broken)
    assert all(not name.endswith("delta.a") for name in fresh.state_dict())


def test_equal_settings_give_equal_runs_and_the_seed_changes_them(studio: Studio) -> None:
    found = []
    for seed in (0, 0, 1):
        trainer, config, engine = studio.method(seed=seed)
        fit(trainer, config.optim, engine=engine, seed=seed)
        found.append(trainer.artifact().tensors)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    assert not torch.equal(found[0][ANCHORS], found[2][ANCHORS])


@pytest.mark.parametrize(
    "change",
    [
        {"method__r": 2}, {"method__alpha": 4.0}, {"method__form": "plain"}, {"method__styles": False},
        {"method__extras": False}, {"method__decoder": False}, {"method__whole_rate": 1.0}, {"method__full": True},
        {"method__space": "w+"}, {"method__anchor_steps": 5}, {"method__anchor_lr": 0.01},
        {"method__together": 0.0},
        {"method__anchor_side": 8}, {"method__patch": 8},
        {"method__symmetry": 0.5}, {"method__symmetry": 0.5, "method__symmetry_form": "pixels"},
        {"method__symmetry": 0.5, "method__symmetry_form": "identity"}, {"method__identity": 0.5},
        {"data__batch_size": 3}, {"optim__beta1": 0.5}, {"precision__dtype": "bf16"},
    ],
    ids=lambda change: list(change)[-1],
)  # fmt: skip
def test_every_setting_changes_the_result(studio: Studio, change: dict[str, Any], plain: dict[str, Any]) -> None:
    trainer, config, engine = studio.method(**change)
    fit(trainer, config.optim, engine=engine, seed=0)
    found = trainer.artifact().tensors
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    same = found.keys() == plain.keys() and all(
        found[name].shape == value.shape and torch.equal(found[name], value) for name, value in plain.items()
    )
    assert not same


@pytest.fixture(scope="module")
def plain(studio: Studio) -> dict[str, Any]:
    trainer, config, engine = studio.method()
    fit(trainer, config.optim, engine=engine, seed=0)
    return trainer.artifact().tensors


def test_a_camera_file_is_kept_or_corrected(studio: Studio, tmp_path: Path) -> None:
    cameras = look_at(torch.tensor(YAWS), torch.zeros(3), 2.7, 3.2)
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps({f"{i}.png": camera.tolist() for i, camera in enumerate(cameras)}))
    kept, _, _ = studio.method(method__cameras=str(path), method__refine=False)
    torch.testing.assert_close(kept.artifact().tensors[CAMERAS], cameras)
    moved, config, _ = studio.method(method__cameras=str(path))
    assert not torch.equal(moved.anchors.cameras, cameras)
    assert config.files() == {"method.cameras": path}


FLAT = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2.7, 0, 0, 0, 1] + 9 * [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "cannot be read as JSON"),
        ("[1, 2]", "must hold"),
        ('{"0.png": [1, 2]}', r"no camera of 1\.png, 2\.png; its names are 0\.png\. Name each"),
        ('{"0.png": [1, 2], "1.png": [1], "2.png": []}', r"0\.png must have 25 numbers.*has 2 numbers"),
        ('{"0.png": [[1, 2]], "1.png": [1], "2.png": []}', r"0\.png must have 25.*a flat list"),
        (json.dumps(dict.fromkeys(("0.png", "1.png", "2.png"), [0.0] * 25)), r"0\.png.*no rotation"),
        (
            json.dumps(dict.fromkeys(("0.png", "1.png", "2.png"), FLAT)),
            r"0\.png.*singular",
        ),
    ],
)  # fmt: skip
def test_wrong_camera_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_cameras(path, ["0.png", "1.png", "2.png"])


def test_one_photo_and_poor_anchors_are_told(studio: Studio, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_png(torch.randn(3, 20, 30).clamp(-1, 1), tmp_path / "noise.png")
    trainer, _, _ = studio.method(data__images=str(tmp_path))
    assert "one photo" in caplog.text
    assert "looks little like noise.png (" in caplog.text
    assert len([line for line in trainer.describe() if line.startswith("data.images: ")]) == 3, "the page shows them"
    assert "not square, so only the middle is seen: noise.png" in caplog.text
    assert trainer.photos.shape == (1, 3, 16, 16), "cut to a square"


def test_wrong_inputs_are_refused(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lrdiff triplane import"):
        studio.method(model=str(tmp_path))
    with pytest.raises(DataError, match=r"data\.images"):
        studio.method(data__images=str(tmp_path))
    for change in (
        {"data__prompt": "a head"}, {"data__flip": True}, {"watch__preview_prompts": ["x"]}, {"method__r": 0},
        {"method__symmetry_every": 2}, {"method__symmetry": 1.0, "method__symmetry_every": 2},
        {"method__symmetry": 1.0, "method__symmetry_temperature": 1.0}, {"method__identity_every": 2},
        {"method__patch": 4}, {"method__nosuch": 1}, {"watch__preview_steps": 3}, {"method__refine": False},
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=list(change)[-1].rpartition("__")[2]):
            studio.config(**change)


def test_validation_photos_previews_and_superresolution(studio: Studio) -> None:
    trainer, config, engine = studio.method(model=str(studio.superres), data__validation=str(studio.images))
    fit(trainer, config.optim, engine=engine, seed=0)
    assert set(trainer.evaluate(stream(0, "e"))) == {"psnr_photos", "psnr_validation"}
    shown = trainer.preview(stream(0, "p"))
    assert {name: tuple(image.shape) for name, image in shown.items()} == dict.fromkeys(
        ("photo", "left", "front", "right"), (2, 3, 32, 32)
    )
    assert [line for line in trainer.describe() if "parameters on" in line]


def test_too_many_photos_are_refused_before_they_are_read(studio: Studio, tmp_path: Path) -> None:
    save_png(torch.zeros(3, 16, 16), tmp_path / "0.png")
    for number in range(1, 501):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "0.png")
    with pytest.raises(DataError, match="holds 501 photos; take at most 500"):
        studio.method(data__images=str(tmp_path))


def test_full_tuning_leaves_only_the_mapping_and_its_result_goes_on(studio: Studio, tmp_path: Path) -> None:
    trainer, config, engine = studio.method(method__full=True)
    trained = {name for name, _ in trainer.personal.named_parameters()}
    everything = {name for name, _ in trainer.generator.named_parameters()}
    assert everything - trained == {name for name in everything if name.startswith("backbone.mapping.")}
    fit(trainer, config.optim, engine=engine, seed=0)
    trainer.artifact().save(tmp_path / "a.safetensors")
    fresh = load(studio.model)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    personal, anchors = wear(fresh, fingerprint(studio.model), Artifact.load(tmp_path / "a.safetensors"))
    ws = anchors.ws.expand(-1, fresh.config.latents, -1)
    shown, expected = (g.view(ws, anchors.cameras).image for g in (fresh, trainer.generator))
    assert torch.equal(shown, expected)
    personal.remove()
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(ValidationError, match="full leaves r, styles without effect"):
        studio.config(method__full=True, method__r=2, method__styles=False)
    with pytest.raises(ValidationError, match="full leaves decoder without effect"):
        studio.config(method__full=True, method__decoder=False)


def test_weights_trained_whole_have_a_rate_of_their_own(studio: Studio) -> None:
    trainer, _, _ = studio.method(method__whole_rate=0.1)
    lora, whole = trainer.param_groups()
    assert (lora.lr_scale, whole.lr_scale) == (1.0, 0.1)
    names = {name for name, p in trainer.personal.named_parameters() if any(p is other for other in whole.params)}
    assert names == set(trainer.personal.before)
    with pytest.raises(ValidationError, match="whole_rate has no effect"):
        studio.config(method__whole_rate=0.1, method__extras=False, method__decoder=False)


@pytest.mark.parametrize(
    ("change", "metrics"),
    [
        ({"method__identity": 1.0, "method__arcface": "{arcface}"}, {"psnr", "identity"}),
        (
            {"method__symmetry": 1.0, "method__symmetry_form": "identity", "method__arcface": "{arcface}"},
            {"psnr", "symmetry"},
        ),
        ({"method__lpips": "{lpips}"}, {"psnr"}),
    ],
    ids=["identity", "symmetry", "lpips"],
)
def test_networks_of_the_users_own_reach_the_adapter(
    studio: Studio, change: dict[str, Any], metrics: set[str], tmp_path: Path
) -> None:
    files = {
        "{arcface}": write(tmp_path / "arcface.pth", arcface_state()),
        "{lpips}": write(tmp_path / "lpips.pth", lpips_state("vgg")),
    }
    named = {key: str(files.get(value, value)) if isinstance(value, str) else value for key, value in change.items()}
    usual, _, _ = studio.method()
    trainer, config, _ = studio.method(**named)
    assert torch.equal(trainer.anchors.ws, usual.anchors.ws), "the search takes no part in it"
    gradients = []
    for one in (usual, trainer):
        loss, found = one(one.batch(0, stream(0, "batch", 0)), stream(0, "forward", 0))
        loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for g in one.param_groups() for p in g.params if p.grad is not None])
        )
    assert set(found) == metrics
    assert bool(gradients[1].isfinite().all())
    assert float((gradients[1] - gradients[0]).abs().max()) > 1e-6
    assert set(config.files()) == {
        f"method.{key.removeprefix('method__')}" for key in change if "{" in str(change[key])
    }


def test_networks_that_cannot_work_are_refused(studio: Studio, tmp_path: Path) -> None:
    alex = write(tmp_path / "lpips.pth", lpips_state("alex"))
    with pytest.raises(
        ConfigError, match=r"method\.lpips: compares pictures of 32 pixels or more, and each step renders 16"
    ):
        studio.method(method__lpips=str(alex))
    with pytest.raises(ConfigError, match=r"absent\.pth: no such file; give the state dict"):
        studio.method(method__lpips=str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match=r"is no such network .*give weights of ArcFace"):
        studio.method(method__arcface=str(alex))
