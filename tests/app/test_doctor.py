"""`lrdiff doctor`: what it finds, what it makes of the shipped files, and its exit code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from app import doctor
from app.cli import main
from app.doctor import Finding, as_record, as_text, examine, is_healthy, manifest
from app.text_models import PURPOSES
from lrdiff.assets import MODELS

FILES = {
    "models/toys/model_index.json": b"{}",
    "models/toys/unet/a.safetensors": b"abc",
    "models/extractor/model.safetensors": b"def",
    "subjects/x/1.png": b"p",
}


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of assets with two models and a picture, and their manifest."""
    folder = tmp_path / "assets"
    entries = []
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        entries.append(f'[[file]]\npath = "{path}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n')
    (folder / "MANIFEST.toml").write_text("\n".join(entries))
    monkeypatch.setattr(doctor, "ASSETS", folder)
    return folder


def by_name(findings: list[Finding], section: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.section == section}


def test_everything_is_looked_at(assets: Path) -> None:
    findings = examine()
    assert is_healthy(findings), as_text(findings)
    assert list(dict.fromkeys(finding.section for finding in findings)) == [
        "software",
        "packages",
        "optional packages",
        "device",
        "attention",
        "disk",
        "shipped models",
        "shipped files",
        "tests",
    ]
    assert {"cpu", "memory", "torch"} <= set(by_name(findings, "device"))
    assert {"torch", "diffusers", "transformers", "peft", "gradio"} <= set(by_name(findings, "packages"))
    assert set(by_name(findings, "optional packages")) == set(doctor.OPTIONAL)
    assert {"sdpa", "xformers"} == set(by_name(findings, "attention"))
    for finding in findings:
        assert finding.value
        assert finding.state == "ok" or finding.advice or finding.name == "gpu"


def test_what_is_absent_comes_with_what_to_install(assets: Path) -> None:
    text = as_text(examine())
    for name, (_, install) in doctor.OPTIONAL.items():
        line = next(line for line in text.splitlines() if line[2:].startswith(name))
        assert ("absent" in line) == line.endswith(f"-> {install}")
    assert text.endswith("everything needed is in order")


def test_shipped_models_are_compared_with_the_manifest(assets: Path) -> None:
    assert manifest().keys() == FILES.keys()
    toys = by_name(list(doctor._models()), "shipped models")["toys"]
    assert (toys.state, toys.value) == ("ok", "2 files, 0.0 MB, checksums as in the manifest")


def test_changed_and_absent_files_are_named(assets: Path) -> None:
    (assets / "models/toys/unet/a.safetensors").write_bytes(b"abd")
    (assets / "models/toys/model_index.json").unlink()
    toys = by_name(list(doctor._models()), "shipped models")["toys"]
    assert toys.state == "problem"
    assert "absent: models/toys/model_index.json" in toys.value
    assert "changed: models/toys/unet/a.safetensors" in toys.value
    assert toys.advice == "git checkout -- assets/models/toys"


def test_a_model_without_manifest(assets: Path) -> None:
    (assets / "MANIFEST.toml").unlink()
    toys = by_name(list(doctor._models()), "shipped models")["toys"]
    assert (toys.state, "cannot be checked" in toys.value) == ("ok", True)
    (assets / "models/toys/model_index.json").unlink()
    toys = by_name(list(doctor._models()), "shipped models")["toys"]
    assert (toys.state, toys.advice) == ("problem", "lrdiff embedded make toys")


def test_paths_of_the_manifest_may_begin_at_the_repository(assets: Path) -> None:
    text = (assets / "MANIFEST.toml").read_text().replace('path = "', 'path = "assets/')
    (assets / "MANIFEST.toml").write_text(text)
    assert by_name(list(doctor._models()), "shipped models")["toys"].state == "ok"


def test_text_and_verdict() -> None:
    findings = [
        Finding("a", "one", "1.0"),
        Finding("a", "second", "absent: for speed", "absent", "pip install second"),
        Finding("b", "third", "1, but >=2 is needed", "problem", "pip install 'third>=2'"),
    ]
    assert as_text(findings) == "\n".join(
        [
            "a",
            "  one     1.0",
            "- second  absent: for speed   -> pip install second",
            "",
            "b",
            "! third   1, but >=2 is needed   -> pip install 'third>=2'",
            "",
            "to put right:",
            "! third: 1, but >=2 is needed -> pip install 'third>=2'",
        ]
    )
    assert as_record(findings)["ok"] is False
    assert as_record(findings[:2])["ok"] is True


def test_exit_code_and_json(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert {"section", "name", "value", "state", "advice"} == set(record["findings"][0])
    (assets / "models/toys/model_index.json").unlink()
    assert main(["doctor"]) == 2
    assert "to put right:\n! toys: absent: models/toys/model_index.json" in capsys.readouterr().out


def test_too_old_a_package_is_a_problem(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1"])
    found = by_name(list(doctor._required()), "packages")
    assert (found["torch"].state, found["torch"].advice) == ("problem", "pip install 'torch>=99'")
    assert (found["nowhere-to-be-found"].state, found["nowhere-to-be-found"].value) == ("problem", "absent")


def test_every_shipped_model_has_a_purpose_on_the_page() -> None:
    assert set(PURPOSES) == {folder.name for folder in MODELS.iterdir() if folder.is_dir()}
