"""A foreign TorchScript extractor: only with consent, only with a calibration of the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrdiff.errors import ModelError
from lrdiff.watermark.extractor import MEAN, STD
from lrdiff.watermark.torchscript import load_torchscript
from lrdiff.watermark.verifier import open_extractor, verify
from tests.lrdiff.watermark.test_verifier import encoded, photo

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Means(nn.Module):
    """Mean colours, and the differences between them."""

    def forward(self, normal: Tensor) -> Tensor:
        mean = normal.mean((2, 3))
        return torch.cat([mean, mean - mean.roll(1, 1)], 1)


class Fails(nn.Module):
    def forward(self, normal: Tensor) -> Tensor:
        assert normal.shape[2] == 64, "only 64 pixels"
        return normal.mean((2, 3))


class Wrong(nn.Module):
    def forward(self, normal: Tensor) -> Tensor:
        return normal


class Dark(nn.Module):
    """Not a number for anything but the empty picture it is tried on."""

    def forward(self, normal: Tensor) -> Tensor:
        return (normal.std((2, 3)) * -1 + 1e-6).log()


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def test_it_reads_normalised_pictures(tmp_path: Path) -> None:
    path = script(Means(), tmp_path / "means.pt")
    network = load_torchscript(path, consent=True)
    assert (network.bits, network.calibration) == (6, None)
    assert network.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.rand(2, 3, 10, 14) * 2 - 1
    normal = ((images + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(network(images), Means()(normal), atol=1e-6)


def test_its_verdict_is_inconclusive(tmp_path: Path) -> None:
    network = open_extractor(script(Means(), tmp_path / "means.pt"), consent=True)
    found = verify(encoded(photo()), "010101", 0.1, network)
    assert (found.verdict, found.test) == ("inconclusive", "none")
    assert "not calibrated" in found.reason
    assert found.extractor == network.sha256()


def test_nothing_is_loaded_without_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(Means(), tmp_path / "means.pt")
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *given, **_: opened.append(given))
    with pytest.raises(ModelError, match=r"code that would run with your rights.*--trust-extractor-code"):
        open_extractor(path)
    assert opened == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(Means().state_dict(), weights)
    (tmp_path / "text.pt").write_text("no module")
    for path in (weights, tmp_path / "text.pt"):
        with pytest.raises(ModelError, match="is no TorchScript file"):
            load_torchscript(path, consent=True)
    with pytest.raises(ModelError, match="no extractor here"):
        load_torchscript(tmp_path / "none.pt", consent=True)


def test_a_failing_module_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gives \[1, 3, 64, 64\] for 1 pictures"):
        load_torchscript(script(Wrong(), tmp_path / "wrong.pt"), consent=True)
    fails = load_torchscript(script(Fails(), tmp_path / "fails.pt"), consent=True)
    with pytest.raises(ModelError, match=r"fails on \[1, 3, 30, 40\]"):
        verify(encoded(photo()), "010", 0.1, fails)
    dark = load_torchscript(script(Dark(), tmp_path / "dark.pt"), consent=True)
    with pytest.raises(ModelError, match="NaN"):
        verify(encoded(photo()), "010", 0.1, dark)
