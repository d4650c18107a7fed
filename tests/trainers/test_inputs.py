"""A resume finds the pictures and the model it began with, or names what changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lrdiff.errors import RunError
from tests.trainers.conftest import save_pictures
from tests.trainers.line import RUN_LINE
from tests.trainers.test_run import settings
from trainers.registry import METHODS
from trainers.run import execute
from trainers.rundir import RunDir, create


@pytest.fixture
def stopped(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Return a quick run, of a line, that was stopped before its first step, with images and a base of its own."""
    monkeypatch.setitem(METHODS, "line", RUN_LINE)
    images = save_pictures(tmp_path / "images", 3)
    (images / "1.txt").write_text("a red cube")
    save_pictures(tmp_path / "held-out", 1)
    config = settings(
        Path(shutil.copytree(tiny_model, tmp_path / "model")),
        images,
        data={"validation": str(tmp_path / "held-out")},
        optim={"steps": 2, "warmup": 0},
    )
    run = create(tmp_path / "run", "line", config | {"method": {}})
    run.stop_path.touch()
    assert execute(run) == "stopped"
    return run


def test_changed_inputs_are_named_and_not_resumed(stopped: RunDir, tmp_path: Path) -> None:
    images, model = tmp_path / "images", tmp_path / "model"
    shutil.copytree(images, tmp_path / "kept-images")
    shutil.copytree(model, tmp_path / "kept-model")
    (images / "0.png").write_bytes((images / "2.png").read_bytes())
    (images / "1.txt").write_text("a red ring")
    (images / "2.png").rename(images / "new.png")
    save_pictures(tmp_path / "held-out", 2)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError) as caught:
        execute(stopped, resume=True)
    assert str(caught.value).splitlines() == [
        f"{stopped.path}: cannot resume, because its inputs are not those it was begun with:",
        "data.images: changed: 0.png, 1.txt",
        "data.images: added: new.png",
        "data.images: missing: 2.png",
        "data.validation: added: 1.png",
        "model: changed: vae/diffusion_pytorch_model.safetensors",
        f"put them back as they were, or make a new run with --config {stopped.record_path}",
    ]
    assert stopped.checkpoint_steps() == [0]
    for name in ("images", "model"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(tmp_path / f"kept-{name}", tmp_path / name)
    (tmp_path / "held-out" / "1.png").unlink()
    assert execute(stopped, resume=True) == "finished", "the advice works, and copies with other times are the same"


def test_a_run_without_a_record_of_its_inputs_goes_on_with_a_warning(stopped: RunDir) -> None:
    record = stopped.read()
    found = record.pop("inputs")
    assert set(found) == {"model", "data.images", "data.validation"}
    stopped.record_path.write_text(json.dumps(record))
    assert execute(stopped, resume=True) == "finished"
    assert "WARNING the run has no record of its images and base model" in stopped.log_path.read_text()
    assert stopped.read()["inputs"] == found, "from now on there is one"
