"""The adapters that can be applied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.adapters import AdapterInfo, adapters, fitting, install, problems, remove
from app.folder import Folder
from lrdiff.artifact import Artifact, Header, sha256
from lrdiff.errors import ArtifactError
from trainers.rundir import RunDir, create


def save(path: Path, base: str = "a" * 64, component: str = "unet") -> Path:
    header = Header(
        method="lora",
        adapter="lora",
        config={"r": 4},
        base_model="toys",
        base_fingerprint=base,
        component=component,
        extra={"prompt": "a photo of sks mug", "steps": 7},
    )
    Artifact({"x.weight": torch.ones(2)}, header).save(path)
    return path


def make(root: Path, name: str, state: str, **words: str) -> RunDir:
    run = create(root / name, "lora", {})
    save(run.artifact_path, **words)
    artifact = {"file": "adapter.safetensors", "sha256": sha256(run.artifact_path)}
    run.update(state=state, artifact=artifact, created=f"2026-01-{len(name):02}T00:00:00+00:00")
    return run


def test_runs_that_ended_well_and_installed_files_are_listed_with_what_they_fit(tmp_path: Path) -> None:
    root, installed = tmp_path / "runs", tmp_path / "adapters"
    mug = make(root, "mug", "finished")
    make(root, "broken", "finished").artifact_path.write_bytes(b"other")
    make(root, "dead", "interrupted")
    deep = make(root, "demo-1/lora", "stopped", base="b" * 64)
    for step in ("000000", "000100"):
        (mug.previews / step).mkdir(parents=True)
        (mug.previews / step / "a-00.png").write_bytes(b"")
    installed.mkdir()
    save(installed / "shared.safetensors", component="vae")
    save(installed / "tidy.safetensors", component="transformer")
    (installed / "torn.safetensors").write_bytes(b"x")
    found = adapters(Folder(root), installed)
    assert [info.name for info in found] == ["demo-1/lora", "mug", "shared", "tidy"]
    assert [info.path for info in found[:3]] == [deep.path, mug.path, installed / "shared.safetensors"]
    one = found[1]
    assert isinstance(one, AdapterInfo)
    assert (one.prompt, one.steps, one.base_model, one.from_run) == ("a photo of sks mug", 7, "toys", "mug")
    assert (one.size, one.file) == (mug.artifact_path.stat().st_size, mug.artifact_path)
    assert [str(path.relative_to(mug.path)) for path in one.previews] == ["previews/000100/a-00.png"]
    assert [info.name for info in fitting(found, "a" * 64)] == ["mug", "tidy"]
    assert [info.name for info in fitting(found, "a" * 64, ["vae"])] == ["shared"]
    assert len(problems(installed)) == 1
    assert "torn.safetensors" in problems(installed)[0]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = save(tmp_path / "a.safetensors")
    assert adapters(Folder(tmp_path / "runs"), tmp_path)[0].base_fingerprint == "a" * 64
    save(file, base="b" * 64)
    assert adapters(Folder(tmp_path / "runs"), tmp_path)[0].base_fingerprint == "b" * 64


def test_importing_checks_and_copies_and_removing_moves(tmp_path: Path) -> None:
    file, folder = save(tmp_path / "mug.safetensors"), tmp_path / "adapters"
    info = install(file, folder)
    assert (info.name, info.path, info.from_run) == ("mug", folder / "mug.safetensors", "")
    assert info.path.read_bytes() == file.read_bytes()
    with pytest.raises(ArtifactError, match="of this name is installed already"):
        install(file, folder)
    moved = remove(info.path, folder)
    assert (adapters(Folder(tmp_path / "runs"), folder), moved.read_bytes()) == ([], file.read_bytes())
    with pytest.raises(ArtifactError, match="is no adapter installed"):
        remove(info.path, folder)
    with pytest.raises(ArtifactError, match="is no adapter installed"):
        remove(file, folder)
    assert file.is_file()


def test_what_is_no_adapter_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"x")
    (tmp_path / "b.safetensors").write_bytes(b"x")
    for name, message in (
        ("a.ckpt", "only such files"),
        ("b.safetensors", "not a readable"),
        ("c.safetensors", "no such"),
    ):
        with pytest.raises(ArtifactError, match=message):
            install(tmp_path / name, tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()
