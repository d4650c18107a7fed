"""The trainer of marks: what learns and what must not, that it learns, how it ends, and that it keeps its secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lrdiff.artifact import read_header
from lrdiff.errors import ConfigError, RunError, TargetError
from lrdiff.rng import stream
from tests.trainers.conftest import save_pictures
from tests.trainers.watermark.conftest import Configure
from trainers.loop import fit
from trainers.run import execute
from trainers.rundir import RunDir, create
from trainers.watermark.config import WatermarkRun
from trainers.watermark.method import Watermark

Prepare = Callable[..., Watermark]
LEARNING: dict[str, Any] = {
    "generated": 16,
    "held_out": 8,
    "distort": 0.0,
    "margin": 2,
    "target_psnr": 24.0,
    "target_accuracy": 0.98,
    "optim": {"steps": 80, "warmup": 5, "lr": 5e-3, "schedule": "constant"},
}


def digest(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers, those of an adapter left out."""
    tensors = {k: v for k, v in module.state_dict().items() if ".default" not in k}
    return hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(tensors.items()))).hexdigest()


def start(path: Path, config: WatermarkRun) -> RunDir:
    return create(path, "watermark", config.model_dump(mode="json"))


@pytest.fixture(scope="module")
def learned(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = start(tmp_path_factory.mktemp("runs") / "learned", configure(**LEARNING))
    assert execute(run) == "finished"
    return run


def test_a_mark_is_learned_and_the_run_ends_when_its_goals_are_met(learned: RunDir) -> None:
    rows = [row for row in learned.metrics() if "accuracy_generated" in row]
    assert rows[0]["psnr_generated"] == 99.0, "at the start the pictures are the unmarked decoder's"
    assert rows[0]["accuracy_generated"] < 0.8
    for row in rows[-2:]:
        assert row["accuracy_generated"] >= 0.98
        assert row["psnr_generated"] >= 24.0
        assert row["goals_met"] == 1.0
    record = learned.read()
    assert record["state"] == "finished"
    assert record["outcome"] == "all goals met in 2 evaluations in a row"
    assert record["step"] == rows[-1]["step"] < 80
    assert learned.checkpoint_steps()[-1] == record["step"]


def test_the_bits_are_nowhere_in_the_run(learned: RunDir, mark: Path) -> None:
    bits = (mark / "key.txt").read_text().strip()
    forms = [text.encode() for text in (bits, ", ".join(bits), ",".join(bits), ", ".join(f"{b}.0" for b in bits))]
    forms.append(bytes(int(bit) for bit in bits))
    for file in sorted(learned.path.rglob("*")):
        assert bits not in file.name
        if file.is_file() and file.suffix != ".png":
            data = file.read_bytes()
            # Tensors may hold any bytes by chance; their texts may not.
            where = data[: 8 + int.from_bytes(data[:8], "little")] if file.suffix == ".safetensors" else data
            assert not any(form in where for form in forms), file
    extra = read_header(learned.artifact_path).extra
    assert extra["key"] == "key"
    assert extra["registered"] is False
    assert extra["missed"] == []


def test_missed_goals_are_told_and_travel_with_the_adapter(prepare: Prepare, caplog: pytest.LogCaptureFixture) -> None:
    method = prepare()
    found = method.evaluate(stream(0, "evaluate"))
    [goal] = [text for text in method.artifact().header.extra["missed"] if text.startswith("accuracy_generated")]
    assert f"{found['accuracy_generated']:.4g} < " in goal
    assert goal in caplog.text


def test_only_the_lora_learns_and_everything_else_stays(prepare: Prepare) -> None:
    method = prepare(distort=1.0)
    before = digest(method.vae), digest(method.extractor)
    statistics = [m.num_batches_tracked.clone() for m in method.extractor.modules() if isinstance(m, nn.BatchNorm2d)]
    fit(method, method.config.optim, engine=method.engine, seed=0)
    assert (digest(method.vae), digest(method.extractor)) == before
    after = [m.num_batches_tracked for m in method.extractor.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(a, b) for a, b in zip(statistics, after, strict=True))
    assert not method.extractor.training
    names = {name for name, p in method.named_parameters() if p.requires_grad}
    assert names == {name for name in names if name.startswith("vae.decoder.up_blocks.1.") and "lora_" in name}
    assert len(names) == 2 * len(method.report.targets) == 8


def test_the_picture_is_compared_with_the_unmarked_decoder_not_with_the_photo(
    prepare: Prepare, configure: Configure, tmp_path: Path
) -> None:
    config = configure(weighting="fixed", generated=1)
    photos = save_pictures(tmp_path / "photos", 2)
    config = config.model_copy(update={"data": config.data.model_copy(update={"images": photos})})
    method = Watermark(config, "watermark", prepare().engine)
    assert len(method.latents) == 3
    _, metrics = method(method.batch(0, stream(0, "batch")), stream(0, "forward"))
    # A random autoencoder restores no photo, so this holds for the decoder's own pictures alone.
    assert float(metrics["psnr"]) > 60.0
    assert float(metrics["image"]) < 1e-3


def test_distortions_change_what_the_extractor_reads_and_nothing_else(prepare: Prepare) -> None:
    found = []
    for distort in (0.0, 1.0):
        method = prepare(distort=distort)
        found.append(method(method.batch(0, stream(0, "batch")), stream(3, "forward"))[1])
    assert float(found[0]["image"]) == float(found[1]["image"])
    assert float(found[0]["bits"]) != float(found[1]["bits"])


def test_loss_weights_follow_the_measures_and_travel_in_checkpoints(prepare: Prepare) -> None:
    method = prepare()
    assert method.weights is not None
    before = method.weights.weights
    for number in range(3):
        method(method.batch(number, stream(0, "batch", number)), stream(0, "forward", number))
        method.stepped(number + 1)
    assert method.weights.weights != before
    other = prepare()
    other.load_state(method.state())
    assert other.weights is not None
    assert other.weights.weights == method.weights.weights
    assert torch.equal(other.weights.state(), method.weights.state())


def test_fixed_weights_have_no_state_but_the_goals(prepare: Prepare) -> None:
    method = prepare(weighting="fixed", image_weight=0.25)
    loss, metrics = method(method.batch(0, stream(0, "batch")), stream(0, "forward"))
    assert float(loss.detach()) == pytest.approx(0.25 * float(metrics["image"]) + 0.75 * float(metrics["bits"]))
    assert set(method.state()) == {"met"}


@pytest.mark.parametrize("kind", ["dlws", "dlws-paper"])
def test_both_forms_of_the_loss_weights_can_be_chosen(prepare: Prepare, kind: str) -> None:
    method = prepare(weighting=kind)
    assert method.weights is not None
    assert method.weights.rules.form == ("paper" if kind == "dlws-paper" else "safe")


def test_previews_show_marked_pictures_and_the_difference(prepare: Prepare) -> None:
    watch = {"preview_every": 1, "preview_prompts": ["a red cube", "a blue ball"], "preview_count": 3}
    shown = prepare(watch=watch).preview(stream(0, "preview"))
    assert set(shown) == {"prompt00", "prompt00-difference", "prompt01", "prompt01-difference"}
    assert all(images.shape == (3, 3, 32, 32) for images in shown.values())
    assert float(shown["prompt00-difference"].abs().max()) == 0.0
    assert float(shown["prompt00"].std()) > 0.0


def test_photos_are_measured_apart(prepare: Prepare, configure: Configure, tmp_path: Path) -> None:
    config = configure()
    data = config.data.model_copy(update={"validation": save_pictures(tmp_path / "photos", 2)})
    method = Watermark(config.model_copy(update={"data": data}), "watermark", prepare().engine)
    found = method.evaluate(stream(0, "evaluate"))
    assert {"psnr_photos", "accuracy_photos"} <= set(found)
    assert len(method.latents) == config.method.generated, "photos of the validation are not learned from"


def test_a_run_without_a_key_trains_nothing(configure: Configure, prepare: Prepare) -> None:
    method = prepare(bits_file=None)
    assert "will be drawn" in " ".join(method.describe())
    with pytest.raises(RunError, match=r"method\.key: no key"):
        fit(method, method.config.optim, engine=method.engine, seed=0)


def test_targets_by_regular_expression_and_bad_ones(prepare: Prepare) -> None:
    method = prepare(target=r"decoder\.up_blocks\.\d\.resnets\.0\.conv2")
    assert method.report.targets == ("decoder.up_blocks.0.resnets.0.conv2", "decoder.up_blocks.1.resnets.0.conv2")
    with pytest.raises(TargetError, match="matches no"):
        prepare(target="nothing")


def test_an_absent_lpips_is_refused_before_anything_is_generated(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="use masked"):
        prepare(image_loss="lpips")
    with pytest.raises(ConfigError, match="no such file"):
        prepare(image_loss="lpips", lpips=str(tmp_path / "absent.pth"))


def test_the_record_names_the_files_that_decide_the_run(learned: RunDir, configure: Configure, mark: Path) -> None:
    known = learned.read()["inputs"]
    assert set(known) == {"model", "method.extractor"}
    assert "key.txt" not in json.dumps(known), "a hash of few bits can be undone"
    config = configure(prompts=str(mark / "prompts.txt"))
    assert set(config.files()) == {"method.extractor", "method.prompts"}
