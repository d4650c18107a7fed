"""A mark from training to a picture, on the command line: train, fuse, generate, read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from app.cli import main
from lrdiff.images import read_image, to_tensor
from lrdiff.metadata import read_parameters
from lrdiff.watermark.extractor import load
from lrdiff.watermark.keys import open_registry
from tests.app.cli.conftest import Lrdiff
from tests.tiny import build_tiny_mark

TRAINING = {
    "method.generated": 16,
    "method.held-out": 8,
    "method.sampling-steps": 2,
    "method.distort": 0.0,
    "method.margin": 1,
    "method.target-psnr": 21.0,
    "method.target-accuracy": 0.97,
    "method.patience": 3,
    "data.batch-size": 4,
    "optim.steps": 400,  # at most: the key is random, and so is when the goals are met
    "optim.warmup": 5,
    "optim.lr": 5e-3,
    "optim.schedule": "constant",
    "watch.preview-every": 0,
    "watch.evaluate-every": 10,
}


@pytest.fixture(scope="module")
def mark(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_mark(tmp_path_factory.mktemp("marks") / "mark", model=tiny)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the flags of a registry of its own."""
    folder = tmp_path_factory.mktemp("registry")
    return ["registry", str(folder / "keys.sqlite"), "key-file", str(folder / "keys.key")]


@pytest.fixture(scope="module")
def trained(tiny: Path, mark: Path, places: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose key was drawn by it."""
    path = tmp_path_factory.mktemp("runs") / "marked"
    flags = [word for name, value in TRAINING.items() for word in (f"--{name}", str(value))]
    flags += ["--method.registry", places[1], "--method.key-file", places[3]]
    flags += ["--method.extractor", str(mark / "extractor.safetensors"), "--model", str(tiny)]
    assert main(["train", "watermark", *flags, "--out", str(path)]) == 0
    return path


def test_from_a_run_to_pictures_that_carry_the_key(
    lrdiff: Lrdiff, tiny: Path, mark: Path, places: list[str], trained: Path, tmp_path: Path
) -> None:
    registry = ["--registry", places[1], "--key-file", places[3]]
    code, out, err = lrdiff("watermark", "fuse", trained, "--out", "decoder", *registry)
    assert (code, out) == (0, "decoder\n"), err
    assert "public decoder in place of this one" in err
    key_id = json.loads((trained / "run.json").read_text())["config"]["method"]["key"]
    key = open_registry(places[1], Path(places[3])).get(key_id)
    header = json.loads((tmp_path / "decoder" / "lrdiff.json").read_text())
    assert header["key"] == key_id
    assert (key.decoder_sha256, key.adapter_sha256) == (header["base_fingerprint"], header["adapter"])
    for file in [*tmp_path.rglob("*"), *trained.rglob("*")]:
        assert key.bits not in file.name
        assert not file.is_file() or file.suffix != ".json" or key.bits not in file.read_text()
    common = ["generate", "--model", tiny, "--prompt", "a red cube", "a blue ball", "--count", 4, "--steps", 2]
    code, out, err = lrdiff(*common, "--decoder", "decoder", "--out", "marked")
    assert code == 0, err
    code, plain, err = lrdiff(*common, "--out", "plain")
    assert code == 0, err
    accuracy = [_accuracy(mark, key.bits, files.split()) for files in (out, plain)]
    # The key is drawn anew for every test, and without a mark one in 256 keys of 8 bits is read whole by chance.
    assert accuracy[0] >= 0.9
    assert accuracy[1] < accuracy[0]
    record = read_parameters(Path(out.split()[0]))
    assert record["decoder"] == {"fingerprint": header["fingerprint"]}
    assert key_id not in json.dumps(record)


def _accuracy(mark: Path, bits: str, files: list[str]) -> float:
    extractor = load(mark / "extractor.safetensors")
    pictures = torch.stack([to_tensor(read_image(Path(file))) for file in files])
    expected = torch.tensor([bit == "1" for bit in bits])
    return float(((extractor(pictures) > 0) == expected).float().mean())


def test_training_says_how_to_go_on(lrdiff: Lrdiff, trained: Path) -> None:
    code, out, _ = lrdiff("runs", "show", trained)
    assert code == 0
    assert "all goals met" in out


def test_a_run_resumes_with_the_key_it_drew(lrdiff: Lrdiff, trained: Path) -> None:
    code, _, err = lrdiff("train", "--resume", trained)
    assert (code, "has finished" in err) == (2, True)


def test_a_dry_run_draws_no_key(lrdiff: Lrdiff, tiny: Path, mark: Path, tmp_path: Path) -> None:
    words = ["--model", tiny, "--method.extractor", mark / "extractor.safetensors", "--method.generated", 4]
    words += ["--method.held-out", 2, "--method.sampling-steps", 2, "--method.registry", "new.sqlite"]
    code, out, err = lrdiff("train", "watermark", *words, "--method.key-file", "new.key", "--dry-run")
    assert code == 0, err
    assert "a key that will be drawn and registered" in err
    assert 'key = ""' in out
    assert list(tmp_path.iterdir()) == []


def test_mistakes_get_one_message(lrdiff: Lrdiff, trained: Path, finished: Path, places: list[str]) -> None:
    registry = ["--registry", places[1], "--key-file", places[3]]
    cases = {
        ("watermark", "fuse"): "takes one run or adapter file",
        ("watermark", "fuse", "nowhere"): "no such adapter file",
        ("watermark", "fuse", finished): "not a watermark",
        ("watermark", "fuse", trained, "--registry", "absent.sqlite"): "no registry of keys",
        ("watermark", "fuse", trained, "--model", "nosuch", *registry): "no such folder",
        ("watermark", "fuse", trained, "--out", ".", *registry): "is there already",
        ("generate", "--adapter", trained): "lrdiff watermark fuse",
        ("generate", "--decoder", "nowhere"): "is no folder",
        ("train", "watermark", "--method.key", "0101101001011010"): "method.bits_file",
    }
    for words, message in cases.items():
        code, out, err = lrdiff(*words)
        assert (code, out) == (2, ""), words
        assert message in err, words
        assert "Traceback" not in err
