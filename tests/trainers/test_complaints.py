"""What people complain about in other trainers, each with the test that keeps it from happening here.

The whole list, with the tests that stand elsewhere, is in trainers/README.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lrdiff import backbones
from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, NonFiniteError, RunError
from lrdiff.inject import attach, peft_config
from tests.trainers.conftest import save_pictures
from tests.trainers.denoise.test_options import run, settings, trainer
from tests.trainers.line import Line, LineSettings, train
from trainers.buckets import bucketed_batch
from trainers.data import find_samples
from trainers.denoise.adapters import LoraSettings
from trainers.denoise.method import Denoise
from trainers.registry import run_config_class
from trainers.run import execute
from trainers.rundir import create

ROOT = Path(__file__).parents[2]


def test_every_complaint_of_the_readme_has_its_test() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "trainers" / "README.md").read_text())
    assert len(named) > 30
    assert [(file, name) for file, name in named if f"\ndef {name}(" not in (ROOT / file).read_text()] == []


def test_images_silently_dropped(tmp_path: Path) -> None:
    """Buckets smaller than the batch, and remainders of larger ones, are trained in smaller batches."""
    shapes = ["wide"] * 5 + ["tall"] * 1 + ["square"] * 8
    batches = [bucketed_batch(i, 4, shapes, seed=0) for i in range(5)]
    assert sorted(number for batch in batches for number in batch) == list(range(14))
    assert sorted(len(batch) for batch in batches) == [1, 1, 4, 4, 4]
    assert all(len({shapes[number] for number in batch}) == 1 for batch in batches)
    later = [bucketed_batch(5 + i, 4, shapes, seed=0) for i in range(5)]
    assert sorted(number for batch in later for number in batch) == list(range(14))
    assert later != batches, "every epoch has an order of its own"


def test_resume_with_a_wrong_learning_rate(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """The rate of a resumed run goes on where it was, and its other settings cannot be changed by the way."""
    changes: dict[str, Any] = {"optim__steps": 6, "watch__checkpoint_every": 3}
    whole = run(tmp_path / "whole", tiny_model, pictures, **changes)
    config = run_config_class("lora").model_validate(settings(tiny_model, pictures, **changes))
    cut = create(tmp_path / "cut", "lora", config.model_dump(mode="json"))
    stepped = Denoise.stepped

    def stop_at_three(self: Denoise, step: int) -> None:
        stepped(self, step)
        if step == 3:
            cut.stop_path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoise, "stepped", stop_at_three)
        assert execute(cut) == "stopped"
    record = json.loads(cut.record_path.read_text())
    edited = json.loads(json.dumps(record))
    edited["config"]["optim"]["lr"] = 0.5
    cut.record_path.write_text(json.dumps(edited))
    with pytest.raises(RunError, match=r"optim\.lr was 0\.01, is 0\.5"):
        execute(cut, resume=True)
    cut.record_path.write_text(json.dumps(record))
    execute(cut, resume=True)

    def rates(made: Any) -> list[float]:
        return [row["lr"] for row in made.metrics() if "lr" in row]

    assert rates(cut) == rates(whole)
    assert len(set(rates(cut))) == 6, "it moved at every step"


def test_adapter_without_effect(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """An adapter that was never trained is refused when it is used, not drawn with."""
    from lrdiff.adapters import adapted, read_adapter
    from lrdiff.generate_config import AdapterSpec

    made = run(tmp_path / "run", tiny_model, pictures)
    artifact = Artifact.load(made.artifact_path)
    silent = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in artifact.tensors.items()}
    Artifact(silent, artifact.header).save(tmp_path / "silent.safetensors")
    backbone = backbones.load(tiny_model)
    spec = AdapterSpec(tmp_path / "silent.safetensors", 1.0)
    with (
        pytest.raises(ArtifactError, match="leaves the model's output as it was"),
        adapted(backbone, [read_adapter(spec)]),
    ):
        pass
    with adapted(backbone, [read_adapter(AdapterSpec(made.artifact_path, 1.0))]) as active:
        assert active.weights == {"generate_0": 1.0}


def test_nan_that_trains_on() -> None:
    """The step that went wrong is named with the group; no weight is touched."""
    method = Line(LineSettings())
    method.bad_offset_at = 2
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    keep = [lambda state: kept.append((state.method.slope.detach().clone(), state.method.offset.detach().clone()))]
    with pytest.raises(NonFiniteError, match=r"gradient of step 3 is not finite in: offset; the weights of step 2"):
        train(method, tuple(keep))
    assert torch.equal(method.slope, kept[-1][0])
    assert torch.equal(method.offset, kept[-1][1])
    broken = Line(LineSettings())
    with torch.no_grad():
        broken.slope[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss of step 1 is nan.*\(not finite in: slope\)"):
        train(broken, ())


def test_caption_and_cache_disagreeing(tiny_model: Path, tmp_path: Path) -> None:
    """The cached conditioning of every sample in a batch is that of its own caption."""
    folder = save_pictures(tmp_path, 4)
    for number in range(4):
        (folder / f"{number}.txt").write_text(["a red cube", "a blue ball", "a green ring", "sks on sand"][number])
    method, _, _ = trainer(tiny_model, folder, data__batch_size=3, data__flip=True)
    fresh = backbones.load(tiny_model)
    by_latents = {moments[0].numpy().tobytes(): i % 4 for i, moments in enumerate(method.latents.moments)}
    for index in range(5):
        batch = method.batch(index, torch.Generator())
        for moments, context in zip(batch["moments"], batch["cond"]["context"], strict=True):
            caption = method.samples[by_latents[moments[0].numpy().tobytes()]].caption
            with torch.no_grad():
                assert torch.equal(context, fresh.condition([caption])["context"][0])


def test_wrong_alpha_on_load(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """The scale is read from the file, by this program and by diffusers."""
    made = run(tmp_path / "run", tiny_model, pictures, method__r=2, method__alpha=8)
    artifact = Artifact.load(made.artifact_path)
    assert peft_config(artifact).lora_alpha == 8  # pyright: ignore[reportAttributeAccessIssue]
    backbone = backbones.load(tiny_model)
    attach(backbone.denoiser, artifact, "loaded")
    layer: Any = backbone.denoiser.get_submodule(made_layer(backbone))
    assert layer.scaling["loaded"] == 4.0
    pipeline = backbones.load(tiny_model).pipeline()
    pipeline.load_lora_weights(made.artifact_path, adapter_name="loaded")
    assert pipeline.unet.get_submodule(made_layer(backbone)).scaling["loaded"] == 4.0


def made_layer(backbone: backbones.Backbone) -> str:
    return backbone.target_layers("attention")[0]


def test_user_files_moved_or_deleted(tiny_model: Path, tmp_path: Path) -> None:
    """A run with every option on the pictures leaves their folder as it was, byte by byte."""
    folder = save_pictures(tmp_path / "pictures", 3)
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a red cube"}\n')
    before = {path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    run(tmp_path / "run", tiny_model, folder, method__buckets=True, data__flip=True)
    assert before == {
        path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


def test_deleting_one_image_resets_the_captions_of_the_others(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path, 3)
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"caption {n}"}) for n in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "1.png").unlink()
    (folder / "metadata.jsonl").write_text("\n".join([lines[0], lines[2]]))
    assert [sample.caption for sample in find_samples(folder, "x")] == ["caption 0", "caption 2"]


def test_dropout_of_an_adapter_has_no_effect_when_it_is_used(tiny_model: Path, pictures: Path) -> None:
    """Previews and results are drawn in eval mode: the same twice."""
    method, _, _ = trainer(tiny_model, pictures, method__dropout=0.5)
    method.eval()
    first, second = (method.preview(torch.Generator())["prompt00"] for _ in range(2))
    assert torch.equal(first, second)
    assert LoraSettings(dropout=0.5).peft(["x"]).lora_dropout == 0.5


def test_prior_preservation_forgets_the_class_prompt(tiny_model: Path, pictures: Path) -> None:
    """The class images are trained with the class prompt's own conditioning."""
    options: dict[str, Any] = {
        "method__prior_prompt": "a blue ball",
        "method__prior_count": 2,
        "method__prior_steps": 1,
    }
    method, _, _ = trainer(tiny_model, pictures, **options)
    with torch.no_grad():
        wanted = backbones.load(tiny_model).condition(["a blue ball"])["context"][0]
    context = method.batch(0, torch.Generator())["prior"]["cond"]["context"]
    assert all(torch.equal(row, wanted) for row in context)
