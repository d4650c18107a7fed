"""What the trainer by the denoising loss can do beside its loss: shapes, prior, average, patience, memory, formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lrdiff.artifact import Artifact
from lrdiff.errors import BackendError, ConfigError
from lrdiff.rng import stream
from tests.trainers.conftest import save_pictures
from trainers.denoise.average import Average
from trainers.denoise.config import TensorLoraSettings
from trainers.denoise.method import Denoise
from trainers.denoise.patience import Patience
from trainers.engine import Engine
from trainers.loop import State, fit
from trainers.registry import run_config_class
from trainers.run import build, execute
from trainers.rundir import RunDir, create


def settings(model: Path, images: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": str(model),
        "data": {"images": str(images), "batch_size": 2},
        "method": {},
        "optim": {"steps": 2, "warmup": 0, "lr": 0.01},
        "watch": {"checkpoint_every": 0, "evaluate_every": 0, "preview_every": 0, "log_every": 1},
    }
    for name, value in changes.items():
        section, last = name.split("__")
        base[section][last] = value
    return base


def trainer(model: Path, images: Path, **changes: Any) -> tuple[Denoise, Any, Engine]:
    config = run_config_class("lora").model_validate(settings(model, images, **changes))
    engine = Engine(config.precision)
    method = build("lora", config, engine)
    assert isinstance(method, Denoise)
    return method, config, engine


def trained(model: Path, images: Path, **changes: Any) -> tuple[Denoise, State]:
    method, config, engine = trainer(model, images, **changes)
    return method, fit(method, config.optim, engine=engine, seed=0)


def run(path: Path, model: Path, images: Path, **changes: Any) -> RunDir:
    config = run_config_class("lora").model_validate(settings(model, images, **changes))
    made = create(path, "lora", config.model_dump(mode="json"))
    execute(made)
    return made


def gradients(method: Denoise) -> list[torch.Tensor]:
    method.train()
    method(method.batch(0, stream(0, "b", 0)), stream(0, "f", 0))[0].backward()
    found = [p.grad.clone() for group in method.param_groups() for p in group.params if p.grad is not None]
    method.zero_grad()
    return found


def test_batches_hold_one_size_and_every_picture_of_an_epoch(tiny_model: Path, tmp_path: Path) -> None:
    for number, size in enumerate([(64, 40), (62, 40), (60, 38), (40, 66), (40, 40)]):
        Image.new("RGB", size, (40 * number, 80, 160)).save(tmp_path / f"{number}.png")
    method, config, engine = trainer(tiny_model, tmp_path, method__buckets=True, data__batch_size=2)
    shapes = [tuple(method.batch(i, stream(0, "b", i))["moments"].shape) for i in range(4)]
    assert sum(shape[0] for shape in shapes) == 5, "every picture once, in smaller batches where a size has too few"
    assert sorted(shape[0] for shape in shapes) == [1, 1, 1, 2]
    assert len({shape[-2:] for shape in shapes}) == 3
    assert any("px" in line and " x " in line for line in method.describe())
    assert fit(method, config.optim, engine=engine, seed=0).step == 2


def test_class_images_come_from_the_untouched_model_and_change_the_loss(tiny_model: Path, pictures: Path) -> None:
    options: dict[str, Any] = {"method__prior_prompt": "a photo of a cube", "method__prior_count": 3}
    plain, _, _ = trainer(tiny_model, pictures)
    first, _, _ = trainer(tiny_model, pictures, method__prior_steps=2, **options)
    again, _, _ = trainer(tiny_model, pictures, method__prior_steps=2, **options)
    assert first.prior is not None
    assert again.prior is not None
    assert len(first.prior) == 3
    assert all(torch.equal(a, b) for a, b in zip(first.prior.moments, again.prior.moments, strict=True))
    assert not any(bool(moments[1].any()) for moments in first.prior.moments), "drawn, so without a spread"
    batch = first.batch(0, stream(0, "b", 0))
    loss, metrics = first(batch, stream(0, "f", 0))
    alone, _ = plain(plain.batch(0, stream(0, "b", 0)), stream(0, "f", 0))
    assert float(metrics["loss_pictures"]) == pytest.approx(float(alone.detach()))
    assert float(loss.detach()) == pytest.approx(float(metrics["loss_pictures"] + metrics["loss_prior"]))


def test_the_average_follows_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = Average([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(3.0)
    average.update(1)  # decay min(0.5, 2/11)
    expected = 2 / 11 * 1.0 + 9 / 11 * 3.0
    with average.applied():
        assert parameter.tolist() == [pytest.approx(expected)]
    assert parameter.tolist() == [3.0]
    other = Average([parameter], 0.5)
    other.load_state(average.state())
    with other.applied():
        assert parameter.tolist() == [pytest.approx(expected)]


def test_the_average_is_saved_and_training_goes_on_from_the_weights(tiny_model: Path, pictures: Path) -> None:
    plain, _ = trained(tiny_model, pictures)
    smooth, _ = trained(tiny_model, pictures, method__ema=0.9)
    own = [p for group in plain.param_groups() for p in group.params]
    others = [p for group in smooth.param_groups() for p in group.params]
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True)), "averaging leaves the training alone"
    saved, averaged = plain.artifact(), smooth.artifact()
    assert saved is not None
    assert averaged is not None
    assert any(not torch.equal(averaged.tensors[key], value) for key, value in saved.tensors.items())


def test_patience_counts_evaluations_and_survives_a_resume() -> None:
    patience = Patience(2)
    for loss in (1.0, 0.8, 0.9):
        patience.see(loss)
        assert patience.reason() == ""
    resumed = Patience(2)
    resumed.load_state(patience.state())
    resumed.see(0.8)
    assert resumed.reason() == "the validation loss has not fallen below 0.8000 in 2 evaluations"


def test_a_run_ends_early_as_finished(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    held_out = save_pictures(tmp_path / "held-out", 1, size=50)
    changes: dict[str, Any] = {"method__patience": 1, "data__validation": str(held_out), "watch__evaluate_every": 1}
    made = run(tmp_path / "run", tiny_model, pictures, optim__lr=1e-12, optim__steps=30, **changes)
    record = made.read()
    assert record["state"] == "finished"
    assert record["step"] == 1, "steps this small change no digit of the loss"
    assert "validation loss has not fallen below" in record["outcome"]
    assert made.artifact_path.is_file()


def test_an_early_stop_that_cannot_come_is_refused(tiny_model: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.patience.*give data\.validation and watch\.evaluate_every"):
        trainer(tiny_model, pictures, method__patience=2)


def test_checkpointing_computes_the_same_gradients_again(tiny_model: Path, pictures: Path) -> None:
    plain, _, _ = trainer(tiny_model, pictures)
    saving, _, _ = trainer(tiny_model, pictures, method__checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.denoiser.modules())
    calls = []
    saving.denoiser.get_submodule("up_blocks.0.resnets.0").register_forward_pre_hook(lambda *_: calls.append(1))
    for one, other in zip(gradients(plain), gradients(saving), strict=True):
        torch.testing.assert_close(one, other)
    assert len(calls) == 2, "once forward, once more in the backward pass"


def test_a_compiled_denoiser_computes_the_same(tiny_model: Path, pictures: Path) -> None:
    plain, _, _ = trainer(tiny_model, pictures)
    traced, _, _ = trainer(tiny_model, pictures, method__compile="eager")
    assert traced.denoiser._compiled_call_impl is not None
    for one, other in zip(gradients(plain), gradients(traced), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_fp16_computes_in_fp16_and_keeps_the_adapter_in_fp32(tiny_model: Path, pictures: Path) -> None:
    plain, before = trained(tiny_model, pictures)
    half, after = _half(tiny_model, pictures)
    assert half.backbone.dtype == torch.float16
    assert all(p.dtype == torch.float32 for group in half.param_groups() for p in group.params)
    assert after.metrics["loss"] == pytest.approx(before.metrics["loss"], rel=0.02)
    assert after.metrics["grad_norm"] == pytest.approx(before.metrics["grad_norm"], rel=0.05), "the scale is taken off"
    assert plain.backbone.dtype == torch.float32


def _half(model: Path, images: Path) -> tuple[Denoise, State]:
    values = settings(model, images) | {"precision": {"dtype": "fp16", "device": "cpu"}}
    config = run_config_class("lora").model_validate(values)
    engine = Engine(config.precision)
    method = build("lora", config, engine)
    assert isinstance(method, Denoise)
    return method, fit(method, config.optim, engine=engine, seed=0)


def test_moments_in_eight_bits_need_their_package_or_a_gpu(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this is about machines without a GPU")
    with pytest.raises(BackendError, match=r"optim\.optimizer is adamw-8bit.*use adamw"):
        run(tmp_path / "run", tiny_model, pictures, optim__optimizer="adamw-8bit")
    record = RunDir(tmp_path / "run").read()
    assert (record["state"], record["seconds"] < 60) == ("failed", True)


def test_an_average_and_patience_resume_exactly(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    held_out = save_pictures(tmp_path / "held-out", 1, size=50)
    changes: dict[str, Any] = {
        "method__ema": 0.9, "method__patience": 20, "data__validation": str(held_out), "watch__evaluate_every": 1,
        "watch__checkpoint_every": 2, "optim__steps": 4,
    }  # fmt: skip
    whole = run(tmp_path / "whole", tiny_model, pictures, **changes)
    config = run_config_class("lora").model_validate(settings(tiny_model, pictures, **changes))
    cut = create(tmp_path / "cut", "lora", config.model_dump(mode="json"))
    _stop_at(cut, 2)
    assert cut.read()["state"] == "stopped"
    assert execute(cut, resume=True) == "finished"
    first, second = Artifact.load(whole.artifact_path).tensors, Artifact.load(cut.artifact_path).tensors
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def _stop_at(made: RunDir, step: int) -> None:
    """Carry out a run that asks itself to stop at a step, as a user would by the file STOP."""
    stepped = Denoise.stepped

    def also(self: Denoise, number: int) -> None:
        stepped(self, number)
        if number == step:
            made.stop_path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoise, "stepped", also)
        execute(made)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("residual", ["ring", "lora", "none"])
def test_every_form_of_tensor_lora_reaches_the_adapter(rank: int, residual: str) -> None:
    if (rank, residual) == (0, "none"):
        with pytest.raises(ValidationError, match="leaves nothing to train"):
            TensorLoraSettings.model_validate({"transform_rank": rank, "residual": residual})
        return
    made = TensorLoraSettings.model_validate({"transform_rank": rank, "residual": residual}).peft(["to_q"])
    assert (made.transform_rank, made.residual) == (rank, residual)
    assert residual == "none" or (made.r, made.alpha) == (1, 4.0)
    # Of rank 1 both starts are the same transform.
    paper = {"transform_rank": rank, "residual": residual, "init": "paper"}
    if rank < 2 and residual != "ring":
        with pytest.raises(ValidationError, match="leaves init without effect"):
            TensorLoraSettings.model_validate(paper)
    else:
        assert TensorLoraSettings.model_validate(paper).peft(["to_q"]).init == "paper"
