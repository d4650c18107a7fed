"""What is said and refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrdiff.errors import BackendError
from tests.trainers.conftest import save_pictures
from tests.trainers.test_run import STEPS, settings
from trainers.config import PrecisionConfig
from trainers.engine import Engine, has_bf16
from trainers.preflight import preflight
from trainers.run import build, execute, read_config
from trainers.rundir import create


def test_one_picture_is_allowed_with_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    images = save_pictures(tmp_path / "one", 1)
    run = create(tmp_path / "run", "tensor-lora", settings(tiny_model, images, optim={"steps": 1, "warmup": 0}))
    assert execute(run) == "finished"
    assert "WARNING only one training image" in run.log_path.read_text()


def test_settings_that_cannot_act_are_told(tiny_model: Path, tmp_path: Path) -> None:
    images = save_pictures(tmp_path / "captioned", 2)
    for picture in images.glob("*.png"):
        picture.with_suffix(".txt").write_text("a red cube")
    config = settings(tiny_model, images, optim={"steps": 1, "warmup": 3})
    run = create(tmp_path / "run", "tensor-lora", config | {"data": config["data"] | {"prompt": "a photo of zwx"}})
    assert execute(run) == "finished"
    log = run.log_path.read_text()
    assert "WARNING warm-up of 3 steps in a run of 1: lr only reaches 25 % of its peak" in log
    assert "WARNING data.prompt 'a photo of zwx' is not used" in log
    with pytest.raises(ValueError, match="preview_every=0 leaves preview_prompts without effect"):
        read_config({
            "method": "tensor-lora",
            "config": settings(tiny_model, images, watch={"preview_every": 0, "preview_prompts": ["a cube"]}),
        })  # fmt: skip


def test_the_pictures_are_not_touched(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(pictures.iterdir())}
    run = create(tmp_path / "run", "tensor-lora", settings(tiny_model, pictures, optim={"steps": 1, "warmup": 0}))
    execute(run)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(pictures.iterdir())} == before


def test_preflight_says_what_when_and_where_without_changing_anything(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    config = read_config({"method": "tensor-lora", "config": settings(tiny_model, pictures)})
    engine = Engine(config.precision)
    method = build("tensor-lora", config, engine)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    text = "\n".join(preflight(method, config, engine, tmp_path))
    for part in (
        "base model tiny",
        "on 32 layers",
        "4 images at 32 px",
        "'a photo of sks'",
        "'a red cube'",
        f"{STEPS} steps at",
    ):
        assert part in text
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in method.named_parameters())


@pytest.mark.parametrize(("large", "rate", "warned"), [(1, 2e-3, True), (1, 5e-4, False), (10**8, 2e-3, False)])
def test_a_rate_for_small_models_is_told_on_a_large_one(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    large: int, rate: float, warned: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("trainers.preflight.LARGE", large)
    config = read_config({"method": "tensor-lora", "config": settings(tiny_model, pictures, optim={"lr": rate})})
    engine = Engine(config.precision)
    preflight(build("tensor-lora", config, engine), config, engine, tmp_path)
    assert ("1e-4 to 5e-4 is usual" in caplog.text) == warned


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_bf16_in_software_is_told(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    Engine(PrecisionConfig.model_validate({"device": "cpu", "dtype": dtype}))
    assert ("no instructions for" in caplog.text) == (dtype == "bf16" and not has_bf16())


def test_a_torch_without_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    Engine(PrecisionConfig.model_validate({"device": "cpu", "dtype": "bf16"}))
    assert "no instructions for" in caplog.text


def test_a_gpu_that_is_absent_is_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = settings(tiny_model, pictures, precision={"device": "cuda"})
    run = create(tmp_path / "run", "tensor-lora", config)
    with pytest.raises(BackendError, match="sees no GPU"):
        execute(run)
    assert run.read()["state"] == "failed"
