"""What people give to a trainer: each is used, or refused with one message, and nothing of theirs is lost."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lrdiff import backbones
from lrdiff.errors import DataError, ModelError, RunError
from tests.trainers.conftest import save_pictures
from tests.trainers.denoise.test_options import run, settings, trainer
from trainers import checkpoint
from trainers.__main__ import main
from trainers.buckets import best_bucket, bucket_sizes, share_cropped
from trainers.data import find_samples, fingerprint
from trainers.denoise.method import Denoise, measured_images
from trainers.registry import run_config_class
from trainers.rundir import RunDir, create


def test_five_thousand_images(tmp_path: Path) -> None:
    image = tmp_path / "00000.png"
    Image.new("RGB", (8, 6)).save(image)
    for number in range(1, 5000):
        (tmp_path / f"{number:05d}.png").hardlink_to(image)
    lines = [json.dumps({"file_name": f"{n:05d}.png", "text": f"picture {n}"}) for n in range(5000)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    samples = find_samples(tmp_path, "x")
    assert [sample.caption for sample in samples] == [f"picture {n}" for n in range(5000)]


def test_of_thousands_of_images_some_are_measured(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring all 5,000 took minutes each time, before the first step too."""
    assert measured_images(5000) == sorted(set(measured_images(5000)))
    assert (len(measured_images(5000)), measured_images(5000)[-1]) == (32, 4843)
    assert measured_images(3) == [0, 1, 2]
    save_pictures(tmp_path, 4)
    (tmp_path / "some.txt").write_text("0.png\n2.png\n")
    all_of_two, _, _ = trainer(tiny_model, tmp_path / "some.txt")
    monkeypatch.setattr("trainers.denoise.method.EVALUATION_IMAGES", 2)
    two_of_all, _, _ = trainer(tiny_model, tmp_path)
    with torch.no_grad():
        losses = [method.evaluate(torch.Generator().manual_seed(0)) for method in (all_of_two, two_of_all)]
    assert losses[0] == losses[1]
    assert "losses are measured on 2 of them" in two_of_all.describe()


def test_a_panorama_is_told_how_much_of_it_is_lost(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (30_000, 300), "red").save(tmp_path / "wide.png")
    method, _, _ = trainer(tiny_model, tmp_path, method__buckets=True)
    assert "wide.png: 30000 x 300 is far from 48 x 16: 97 % of it is cut off" in caplog.text
    assert method.latents.shapes == [(2, 4, 8, 24)]


def test_every_unreadable_picture_is_named_and_none_is_touched(tiny_model: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError) as caught:
        trainer(tiny_model, tmp_path)
    lines = str(caught.value).splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == ["cut.png", "empty.jpg", "moving.gif"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_unusual_pictures_are_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (10, 200, 30, 0)).save(tmp_path / "print.jpg")
    Image.new("I;16", (40, 40), 40_000).save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(tmp_path / "glass.webp")
    Image.new("P", (40, 40)).save(tmp_path / "few.png")
    turned = Image.new("RGB", (60, 40), "green")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    method, _, _ = trainer(tiny_model, tmp_path, method__buckets=True)
    assert len(method.latents) == 5
    heights, widths = method.latents.shapes[-1][-2:]
    assert heights > widths, "upright as the camera was held"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "gone.png", "text": "a"}', r"metadata\.jsonl: line 2: there is no file gone\.png"),
        ('{"file_name": "0.png", "text": "a"}', r"line 2: 0\.png is named twice"),
        ('{"file_name": "1.png", "text": " "}', r"line 2: 1\.png has an empty text"),
        ('{"file_name": "1.png"}', r"line 2: cannot be used \(KeyError: 'text'\); write \{\"file_name\""),
        ("nonsense", r"line 2: cannot be used \(JSONDecodeError"),
    ],
)
def test_bad_lines_of_metadata_are_named(tmp_path: Path, line: str, message: str) -> None:
    save_pictures(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a red cube"}\n' + line)
    with pytest.raises(DataError, match=message):
        find_samples(tmp_path, "x")


def test_metadata_and_text_files_together(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "from the table"}\n\n')
    (tmp_path / "1.txt").write_text("from beside")
    assert [s.caption for s in find_samples(tmp_path, "the prompt")] == ["from the table", "from beside", "the prompt"]
    assert "metadata.jsonl" in fingerprint(tmp_path)
    (tmp_path / "0.txt").write_text("another")
    with pytest.raises(DataError, match=r"0\.txt: says otherwise than metadata\.jsonl does of 0\.png"):
        find_samples(tmp_path, "x")
    (tmp_path / "0.txt").unlink()
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "0.png", "text": "Gl\xe4ser"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.jsonl: is not UTF-8"):
        find_samples(tmp_path, "x")


def test_a_list_of_pictures(tmp_path: Path) -> None:
    first, second = save_pictures(tmp_path / "a", 1), save_pictures(tmp_path / "b", 2)
    (second / "1.txt").write_text("a red cube")
    (tmp_path / "list.txt").write_text(f"a/0.png\n\n{second / '1.png'}\n")
    samples = find_samples(tmp_path / "list.txt", "x")
    assert [(sample.path, sample.caption) for sample in samples] == [
        (first / "0.png", "x"),
        (second / "1.png", "a red cube"),
    ]
    assert len(fingerprint(tmp_path / "list.txt")) == 3
    for text, message in {
        "a/9.png": "line 1: a/9.png: no such file",
        "a/0.png\na/0.png": "listed twice",
        "": "lists no pictures",
    }.items():
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            find_samples(tmp_path / "list.txt", "x")


def test_sizes_of_buckets() -> None:
    for resolution, factor in ((512, 8), (1024, 8), (128, 8), (32, 2)):
        sizes = bucket_sizes(resolution, factor)
        assert (resolution, resolution) in sizes
        assert all(w * h <= resolution**2 and not w % (2 * factor) and not h % (2 * factor) for w, h in sizes)
        assert {(h, w) for w, h in sizes} == set(sizes)
    sizes = bucket_sizes(512, 8)
    assert best_bucket(1000, 1000, sizes) == (512, 512)
    assert best_bucket(1920, 1080, sizes) == (672, 384)
    assert share_cropped(1000, 1000, (512, 512)) == pytest.approx(0.0)
    assert share_cropped(2000, 1000, (512, 512)) == pytest.approx(0.5)


def test_a_full_disk_in_the_middle_of_a_checkpoint(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, one message, and the checkpoint before is there."""
    config = run_config_class("lora").model_validate(
        settings(tiny_model, pictures, optim__steps=4, watch__checkpoint_every=1)
    )
    made = create(tmp_path / "run", "lora", config.model_dump(mode="json"))
    write = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "000003" in str(path) and "optimizer" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    assert main([str(made.path)]) == 2
    assert made.checkpoint_steps() == [1, 2]
    assert made.read()["state"] == "failed"
    assert "No space left on device" in made.read()["outcome"]


def test_out_of_memory_says_what_to_change(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config_class("lora").model_validate(settings(tiny_model, pictures))
    made = create(tmp_path / "run", "lora", config.model_dump(mode="json"))
    stepped = Denoise.stepped

    def greedy(self: Denoise, step: int) -> None:
        stepped(self, step)
        torch.empty(2**60)  # asks the allocator itself, which refuses

    monkeypatch.setattr(Denoise, "stepped", greedy)
    assert main([str(made.path)]) == 2
    outcome = made.read()["outcome"]
    assert "out of memory" in outcome
    assert "lower data.batch_size" in outcome
    assert "method.checkpointing" in outcome


def test_what_is_no_model_is_said(tmp_path: Path, tiny_model: Path, pictures: Path) -> None:
    (tmp_path / "folder").mkdir()
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    shutil.rmtree(broken / "vae")
    cases = {
        str(tmp_path / "folder"): "not a model folder, it has no model_index.json",
        str(broken): "the folder vae/ is missing",
        "someone/some-model": r"not in the local cache; models are not downloaded here: fetch it with `hf download",
    }
    for model, message in cases.items():
        with pytest.raises(ModelError, match=message):
            backbones.load(model)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "unet",
            r"the loss of the first batch is nan, before anything was learned: denoiser\.\S+ of the base model holds",
        ),
        ("vae", "its autoencoder turns pictures into numbers that are not finite"),
    ],
)
def test_a_model_with_nan_in_it_is_told_from_a_rate_that_is_too_high(
    tiny_model: Path, pictures: Path, tmp_path: Path, part: str, message: str
) -> None:
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    [file] = (damaged / part).glob("*.safetensors")
    weights = load_file(file)
    weights["encoder.conv_in.weight" if part == "vae" else "conv_in.weight"][0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    made = create(tmp_path / "run", "lora", settings(damaged, pictures))
    assert main([str(made.path)]) == 2
    assert re.search(message, made.read()["outcome"])
    assert made.metrics() == []


def test_two_runs_into_one_directory(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    made = run(tmp_path / "run", tiny_model, pictures)
    before = made.artifact_path.read_bytes()
    with pytest.raises(RunError, match="run"):
        run(tmp_path / "run", tiny_model, pictures)
    assert made.artifact_path.read_bytes() == before
    assert RunDir(tmp_path / "run").read()["state"] == "finished"
