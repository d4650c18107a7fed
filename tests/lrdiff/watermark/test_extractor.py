"""The extractor's size, normalisation, whitening, calibration and file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrdiff.errors import ModelError, ShapeError
from lrdiff.watermark.calibration import Calibration
from lrdiff.watermark.extractor import KEY, MEAN, STD, Extractor, load


def noise(count: int, *sides: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in Extractor().parameters()) == 291_456


def test_strides_cost_no_parameters_and_travel_in_the_file(tmp_path: Path) -> None:
    strides = (2, 2, 1, 1, 2, 1, 1, 1, 1)
    assert sum(p.numel() for p in Extractor(strides=strides).parameters()) == 291_456
    torch.manual_seed(0)
    extractor = Extractor(bits=4, width=6, depth=2, strides=(2, 1, 2))
    assert extractor.blocks(noise(1, 16, 16)).shape == (1, 4, 4, 4)
    extractor.whiten(noise(64, 16, 16).split(16))
    extractor.save(tmp_path / "e.safetensors")
    read = load(tmp_path / "e.safetensors")
    assert read.strides == (2, 1, 2)
    assert read.sha256() == extractor.sha256()
    torch.testing.assert_close(read(noise(2, 16, 16)), extractor(noise(2, 16, 16)))


@pytest.mark.parametrize("strides", [(1, 1), (1, 0, 1)])
def test_wrong_strides_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="strides"):
        Extractor(bits=4, width=4, depth=2, strides=strides)


def test_strides_change_the_hash_and_plain_ones_do_not() -> None:
    torch.manual_seed(0)
    plain = Extractor(bits=4, width=4, depth=1)
    strided = Extractor(bits=4, width=4, depth=1, strides=(2, 1))
    strided.load_state_dict(plain.state_dict())
    same = Extractor(bits=4, width=4, depth=1, strides=(1, 1))
    same.load_state_dict(plain.state_dict())
    assert plain.sha256() == same.sha256() != strided.sha256()


def test_spread_makes_bits_fair_on_each_kind() -> None:
    torch.manual_seed(1)
    extractor = Extractor(bits=6, width=12, depth=1)
    kinds = {"dark": (noise(400, 6, 6) * 0.5 - 0.4).split(50), "light": (noise(400, 6, 6, seed=1) + 0.3).split(50)}
    found = []
    for spread in (1.0, 1000.0):
        extractor.whiten(kinds, spread=spread)
        found.append([float(extractor(torch.cat(kind)).detach().mean(0).abs().max()) for kind in kinds.values()])
    assert min(found[0]) > 0.3
    assert max(found[1]) < 0.05


def test_calibration_reports_the_worst_kind() -> None:
    torch.manual_seed(1)
    extractor = Extractor(bits=6, width=12, depth=1)
    extractor.whiten(noise(400, 6, 6).split(50))
    alone = {name: extractor.calibrate({name: [images]}) for name, images in _two_kinds().items()}
    both = extractor.calibrate({name: [images] for name, images in _two_kinds().items()})
    assert both.images == {"noise": 300, "light": 300}
    assert both.bias == max(found.bias for found in alone.values())
    assert both.correlation == max(found.correlation for found in alone.values())


def _two_kinds() -> dict[str, torch.Tensor]:
    return {"noise": noise(300, 6, 6, seed=2), "light": noise(300, 6, 6, seed=3) + 0.3}


@pytest.mark.parametrize("sides", [(8, 8), (7, 13), (1, 1), (33, 20)])
def test_any_size_is_read(extractor: Extractor, sides: tuple[int, int]) -> None:
    logits = extractor(noise(2, *sides))
    assert logits.shape == (2, 24)
    assert logits.isfinite().all()


def test_normalisation_is_applied_once() -> None:
    extractor = Extractor(bits=4, width=4, depth=1).eval()
    seen: list[torch.Tensor] = []
    extractor.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = noise(2, 5, 6)
    extractor(images)
    expected = ((images + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("count", [200, 400])
def test_whitened_logits_have_the_gain_as_scale_whatever_the_number(gain: float, count: int) -> None:
    torch.manual_seed(1)
    extractor = Extractor(bits=6, width=12, depth=1)
    images = noise(count, 6, 6)
    extractor.whiten(images.split(50), gain)
    logits = extractor(images).double().detach()
    torch.testing.assert_close(logits.mean(0), torch.zeros(6).double(), atol=1e-2 * gain, rtol=0)
    torch.testing.assert_close(torch.cov(logits.T, correction=0) / gain**2, torch.eye(6).double(), atol=2e-2, rtol=0)


def test_whitening_keeps_bits_near_their_meaning(extractor: Extractor) -> None:
    assert torch.equal(extractor.get_buffer("white"), extractor.get_buffer("white").T) or torch.allclose(
        extractor.get_buffer("white"), extractor.get_buffer("white").T, rtol=1e-4, atol=1e-4
    )


def test_a_calibrated_extractor_is_fair(extractor: Extractor) -> None:
    record = extractor.calibration
    assert record is not None
    assert record.images == {"random": 3000}
    assert record.unfair() is None
    away = torch.tensor(record.ones) - 0.5
    assert record.bias == pytest.approx(float(away.square().mean().sqrt()))
    assert record.largest_bias == pytest.approx(float(away.abs().max()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": {"a": 999}}, "fewer"),
        ({"bias": 0.09}, "bits are unfair"),
        ({"largest_bias": 0.41}, "a bit is unfair"),
        ({"correlation": 0.11}, "bits are related"),
        ({"largest_correlation": 0.71}, "two bits are one"),
    ],
)
def test_an_unfair_calibration_says_why(change: dict[str, object], reason: str) -> None:
    good = Calibration({"a": 1000}, (0.0,), (0.5,), 0.0, 0.0, 0.0, 0.0)
    assert good.unfair() is None
    found = dataclasses.replace(good, **change).unfair()  # pyright: ignore[reportArgumentType]
    assert found is not None
    assert reason in found
    assert dataclasses.replace(good, bias=float("nan")).unfair() is not None


def test_dependent_bits_and_too_few_images_are_refused() -> None:
    extractor = Extractor(bits=6, width=4, depth=1)
    with pytest.raises(ShapeError, match="more images than 6"):
        extractor.whiten([noise(6, 4, 4)])
    torch.nn.init.zeros_(extractor.head.weight)
    with pytest.raises(ModelError, match="depend on each other"):
        extractor.whiten([noise(50, 4, 4)])
    assert not extractor.whitened
    with pytest.raises(ModelError, match="not whitened"):
        extractor.calibrate({"a": [noise(4, 4, 4)]})
    with pytest.raises(ShapeError, match="not"):
        extractor(torch.zeros(3, 4, 4))


def test_directions_that_are_not_read_are_counted() -> None:
    torch.manual_seed(0)
    fresh = Extractor(bits=12)
    left, _, right = torch.linalg.svd(fresh.head.weight.detach())
    for values, read in ((torch.ones(12), 12), (torch.tensor([*[1.0] * 10, 0.19, 1e-6]), 10)):
        fresh.head.weight.data = left @ values.diag() @ right
        assert fresh.directions() == read
    # Every single bit still has a row of its own.
    assert float(fresh.head.weight.norm(dim=1).min()) > 0.1


def test_a_file_holds_everything(extractor: Extractor, tmp_path: Path) -> None:
    digest = extractor.save(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = load(path)
        assert again.sha256() == digest == extractor.sha256()
        assert again.calibration == extractor.calibration
        assert not again.training
        assert not any(p.requires_grad for p in again.parameters())
        torch.testing.assert_close(again(noise(2, 9, 9)), extractor(noise(2, 9, 9)), rtol=0, atol=0)


def test_the_hash_follows_weights_and_calibration(extractor: Extractor, tmp_path: Path) -> None:
    digest = extractor.save(tmp_path / "e.safetensors")
    other = load(tmp_path / "e.safetensors")
    other.calibration = None
    assert other.sha256() != digest
    other = load(tmp_path / "e.safetensors")
    other.head.bias[0] += 1e-3
    assert other.sha256() != digest


def test_bad_files_are_refused(extractor: Extractor, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(ModelError, match="no extractor here"):
        load(path)
    with pytest.raises(ModelError, match="only after whitening"):
        Extractor(4, 4, 1).save(path)
    assert not path.exists()
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="damaged or no safetensors"):
        load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="another kind"):
        load(path)
    extractor.save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ModelError, match="differs from its hash"):
        load(path)
    path.write_bytes(data[:-100])
    with pytest.raises(ModelError, match="damaged"):
        load(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"whitened": False}, "not whitened"),
        ({"format": 2}, "update"),
        ({"bits": 0}, "damaged"),
        ({"width": 9}, "damaged"),
    ],
)
def test_bad_headers_are_refused(extractor: Extractor, tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "e.safetensors"
    header = {"format": 1, "bits": 24, "width": 32, "depth": 2, "whitened": True, "gain": 1.0, "calibration": None}
    tensors = {name: tensor.contiguous() for name, tensor in extractor.state_dict().items()}
    save_file(tensors, path, {KEY: json.dumps({**header, "sha256": extractor.sha256(), **change})})
    with pytest.raises(ModelError, match=reason):
        load(path)
