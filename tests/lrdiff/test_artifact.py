"""The one file a run leaves behind."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrdiff.artifact import FORMAT, Artifact, Header, read_header, sha256
from lrdiff.errors import ArtifactError
from tests.disk import full_disk


class Kind(enum.Enum):
    RING = "ring"


def header(**changes: Any) -> Header:
    values = {
        "method": "tensor-lora",
        "adapter": "tensor_lora",
        "config": {"r": 6, "target_modules": ["b", "a"], "alpha": 0.1},
        "base_model": "toys",
        "base_fingerprint": "f" * 64,
        "extra": {"seed": 3, "prompt": "ein süßer Würfel"},
    }
    return Header(**(values | changes))


def artifact(**changes: Any) -> Artifact:
    torch.manual_seed(0)
    tensors = {"a.lora_A": torch.randn(2, 5), "b.lora_B": torch.randn(7, 2).half(), "c": torch.tensor([1, 2])}
    return Artifact(tensors, header(**changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    artifact().save(path)
    return path


def test_round_trip_is_exact(saved: Path) -> None:
    made, read = artifact(), Artifact.load(saved)
    assert read.header == made.header
    assert read_header(saved) == made.header
    assert read.tensors.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_the_same_adapter_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    artifact(config={"alpha": 0.1, "r": 6, "target_modules": ["b", "a"]}).save(tmp_path / "again.safetensors")
    assert sha256(saved) == sha256(tmp_path / "again.safetensors")


def test_views_and_other_layouts_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    made = Artifact({"transposed": base.t(), "strided": base[:, ::2]}, header())
    made.save(tmp_path / "a.safetensors")
    read = Artifact.load(tmp_path / "a.safetensors")
    assert torch.equal(read.tensors["transposed"], base.detach().t())
    assert torch.equal(read.tensors["strided"], base.detach()[:, ::2])


def test_sets_enums_and_dtypes_in_the_config_become_json(tmp_path: Path) -> None:
    made = artifact(config={"targets": {"b", "a"}, "kind": Kind.RING, "dtype": torch.float32, "pair": (1, 2)})
    assert made.header.config == {"targets": ["a", "b"], "kind": "ring", "dtype": "torch.float32", "pair": [1, 2]}
    made.save(tmp_path / "a.safetensors")
    assert Artifact.load(tmp_path / "a.safetensors").header == made.header


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_is_refused_on_save_and_on_load(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"good": torch.zeros(3), "weak.layer": torch.tensor([0.0, bad], dtype=dtype)}
    with pytest.raises(ArtifactError, match=r"weak\.layer.*NaN"):
        Artifact(tensors, header()).save(path)
    assert list(tmp_path.iterdir()) == []
    write_raw(path, header_text(), {f"unet.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(ArtifactError, match=r"weak\.layer.*NaN"):
        Artifact.load(path)


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="without tensors"):
        Artifact({}, header()).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def header_text(**changes: Any) -> str:
    record = {name: getattr(header(), name) for name in Header.__dataclass_fields__}
    return json.dumps({"format": FORMAT} | record | changes)


def write_raw(path: Path, text: str | None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    save_file(tensors or {"a": torch.zeros(2)}, path, metadata={"lrdiff": text} if text is not None else None)


DAMAGED_HEADERS = {
    "no header": (None, "no lrdiff header"),
    "not JSON": ("{", "damaged"),
    "a list": ("[1]", "damaged"),
    "a number": ("3", "damaged"),
    "null": ("null", "damaged"),
    "no format": ("{}", "damaged"),
    "newer": (header_text(format=FORMAT + 1), "format 2.*update lrdiff"),
    "a field too many": (header_text(secret=1), "other fields"),
    "a field too few": (json.dumps({"format": FORMAT, "method": "lora"}), "other fields"),
    "config is a string": (header_text(config="r=4"), "other fields"),
    "adapter is a number": (header_text(adapter=3), "other fields"),
}


@pytest.mark.parametrize("case", DAMAGED_HEADERS)
def test_damaged_headers_are_refused(tmp_path: Path, case: str) -> None:
    text, message = DAMAGED_HEADERS[case]
    path = tmp_path / "a.safetensors"
    write_raw(path, text)
    for read in (Artifact.load, read_header):
        with pytest.raises(ArtifactError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 8, 100, 0.5, 0.999])
def test_truncated_files_are_refused(saved: Path, length: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(length if length >= 1 else length * len(data))])
    with pytest.raises(ArtifactError, match=r"adapter\.safetensors.*(again)"):
        Artifact.load(saved)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    contents = {"a.png": b"\x89PNG\r\n\x1a\n" + bytes(99), "a.bin": b"\x80\x02}q\x00.", "a.txt": b"weights\n" * 99}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError, match="not a readable safetensors"):
            Artifact.load(tmp_path / name)


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(ArtifactError, match="no such adapter file"):
            Artifact.load(path)


def test_a_full_disk_keeps_the_old_adapter(saved: Path) -> None:
    before = saved.read_bytes()
    with full_disk(4096), pytest.raises(ArtifactError, match=r"cannot be written.*space"):
        Artifact({"a": torch.zeros(100_000)}, header()).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(ArtifactError, match="cannot be written"):
            artifact().save(folder / "a.safetensors")


def test_a_tensor_of_another_component_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_raw(path, header_text(), {"vae.layer": torch.zeros(2)})
    with pytest.raises(ArtifactError, match=r"vae\.layer is not of unet"):
        Artifact.load(path)
