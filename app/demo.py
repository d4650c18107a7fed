"""`lrdiff demo`: from a folder of images to an adapter to new images, and a measured answer to "is that my subject?".

Trains tensor-lora and, for comparison, plain LoRA of rank 4 on a shipped subject with the same steps and seed, draws
the same prompts and seeds with the base model and with both adapters, and compares every image with pictures of the
subject that were never trained on, by the identity embedding of a probe.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrdiff.assets import SUBJECTS
from lrdiff.errors import DataError, RunError
from lrdiff.files import write_bytes, write_json
from lrdiff.generate import generate
from lrdiff.generate_config import GenerateConfig
from lrdiff.images import crop_to, read_image, to_image, to_tensor
from lrdiff.png import encode, writable
from lrdiff.probe import load_probe
from lrdiff.sheet import sheet
from trainers.config import DataConfig, OptimConfig, RunConfig, WatchConfig
from trainers.denoise.adapters import LoraSettings
from trainers.denoise.config import TensorLoraSettings
from trainers.run import execute
from trainers.rundir import create, default_path

log = logging.getLogger(__name__)

SUBJECT = "horned-mug"
CONTEXTS = ("in a studio", "on grass", "in snow", "on a wooden table")
COUNT = 2
PROBE = "probe-b"
CELL = 128
"""Side of the pictures on the sheet, and what the probe reads."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the comparison.

    Attributes:
        name: Shown to people.
        adapter: Run directory, or None for the base model.
        word: What stands before the class noun in the prompts.
        parameters: Trained parameters.
        seconds: Training time.
    """

    name: str
    adapter: Path | None
    word: str
    parameters: int
    seconds: float


def run_demo(subject: str = SUBJECT, steps: int = 500, seed: int = 0, out: Path = Path("runs")) -> Path:
    """Run the whole path on a shipped subject.

    Args:
        subject: Name of a folder in assets/subjects.
        steps: Training steps of each adapter.
        seed: Of training and generation.
        out: Folder in which the demo's own folder is made.

    Returns:
        The demo's folder, with `demo.json`, the contact sheet `demo.png`, both runs and all images.

    Raises:
        DataError: There is no such subject, or the folder cannot be written.
        RunError: A training was stopped, for example by Ctrl-C.
    """
    source = find_subject(subject)
    noun = json.loads((source / "subject.json").read_text())["noun"]
    folder = default_path(writable(out), "demo", source.name)
    folder.mkdir(parents=True)
    settings = {"tensor-lora": TensorLoraSettings(), "lora": LoraSettings()}
    contenders = [Contender("base model", None, "a", 0, 0.0)]
    for method, method_settings in settings.items():
        config = RunConfig(
            data=DataConfig(images=source / "train", prompt=f"a photo of sks {noun}"),
            method=method_settings,
            optim=OptimConfig(steps=steps),
            watch=WatchConfig(checkpoint_every=0, evaluate_every=0, preview_every=0),
            seed=seed,
        )
        begin = time.monotonic()
        run = create(folder / method, method, config.model_dump(mode="json"))
        if execute(run) != "finished":
            raise RunError(f"{run.path}: stopped at step {run.read()['step']}, so the demo ends; start it again")
        parameters = run.read()["parameters"]
        name = "tensor-lora" if method == "tensor-lora" else "LoRA r=4"
        contenders.append(Contender(name, run.path, "sks", parameters, time.monotonic() - begin))
    references = _pictures(sorted((source / "held-out").glob("*.png")))
    judged = [_judge(contender, noun, seed, folder, references) for contender in contenders]
    training = _pictures(sorted((source / "train").glob("*.png")))
    write_bytes(folder / "demo.png", _sheet(training, contenders, [images for _, images in judged]))
    record = {
        "subject": source.name,
        "steps": steps,
        "seed": seed,
        "probe": PROBE,
        "rows": [row for row, _ in judged],
        "likeness_of_real_images": _likeness_within(references),
    }
    write_json(folder / "demo.json", record)
    _say(folder, record)
    return folder


def find_subject(name: str) -> Path:
    """Return a shipped subject's folder. Raises `DataError` with the known names."""
    known = sorted(path.parent.name for path in SUBJECTS.glob("*/subject.json"))
    if name not in known:
        raise DataError(f"no subject {name!r} in {SUBJECTS}; known: {', '.join(known) or 'none'}")
    return SUBJECTS / name


def likeness(images: Tensor, references: Tensor) -> float:
    """Return the mean cosine of identity embeddings over all pairs of an image and a reference, in [-1, 1].

    Args:
        images: [N, 3, H, W] in [-1, 1].
        references: [M, 3, H, W] in [-1, 1], pictures of the subject.
    """
    probe = load_probe(PROBE)
    with torch.no_grad():
        return float((probe.identity(images) @ probe.identity(references).T).mean())


def _likeness_within(references: Tensor) -> float:
    """Return the mean likeness of different real pictures of the subject to each other: what perfect would be."""
    probe = load_probe(PROBE)
    with torch.no_grad():
        embedded = probe.identity(references)
    cosines = embedded @ embedded.T
    count = len(references)
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def _judge(
    contender: Contender, noun: str, seed: int, folder: Path, references: Tensor
) -> tuple[dict[str, object], Tensor]:
    """Generate with one contender and compare with the held-out pictures."""
    config = GenerateConfig(
        adapter=(str(contender.adapter),) if contender.adapter else (),
        prompt=tuple(f"a photo of {contender.word} {noun} {context}" for context in CONTEXTS),
        seed=seed,
        count=COUNT,
        out=folder / "images" / contender.name.replace(" ", "-").replace("=", ""),
    )
    images = _pictures(generate(config))
    row: dict[str, object] = {
        "name": contender.name,
        "parameters": contender.parameters,
        "likeness": likeness(images, references),
        "train_seconds": round(contender.seconds, 1),
        "images": str(config.out),
    }
    return row, images


def _pictures(paths: Sequence[Path]) -> Tensor:
    """Read pictures as one batch of squares."""
    return torch.stack([to_tensor(crop_to(read_image(path), CELL, CELL)) for path in paths])


def _sheet(training: Tensor, contenders: Sequence[Contender], images: Sequence[Tensor]) -> bytes:
    """Return a labelled sheet as PNG: some training images on top, then one row per contender."""
    columns = [f"{context} ({number + 1})" for context in CONTEXTS for number in range(COUNT)]
    blank = torch.ones(max(0, len(columns) - len(training)), 3, CELL, CELL)
    rows = [torch.cat([training[: len(columns)], blank]), *images]
    cells = [[to_image(image) for image in row] for row in rows]
    return encode(sheet(cells, ["training images", *(c.name for c in contenders)], columns), {})


def _say(folder: Path, record: dict[str, object]) -> None:
    """Log the last lines: where the images are and how like the subject they came out."""
    log.info("")
    log.info("likeness to %s (identity cosine to pictures never trained on, by %s):", record["subject"], PROBE)
    log.info("  %-12s %10s %9s %9s", "", "parameters", "likeness", "training")
    rows = record["rows"]
    assert isinstance(rows, list)
    for row in rows:
        values = (row["name"], f"{row['parameters']:,}", row["likeness"], row["train_seconds"])
        log.info("  %-12s %10s %9.3f %7.0f s", *values)
    log.info("  %-12s %10s %9.3f", "real images", "", record["likeness_of_real_images"])
    log.info("images: %s", folder / "images")
    log.info("side by side: %s", folder / "demo.png")
