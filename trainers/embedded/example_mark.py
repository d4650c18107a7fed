"""The example mark of `toys`, trained as users train theirs, with bits that follow from the seed and are public."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrdiff.assets import MODELS
from lrdiff.errors import RunError
from lrdiff.files import write_bytes
from lrdiff.rng import stream
from lrdiff.watermark.example import ADAPTER, BITS
from lrdiff.watermark.extractor import load
from trainers import rundir
from trainers.embedded.export import replacing_folder
from trainers.embedded.training import training_seconds
from trainers.run import execute
from trainers.watermark.config import WatermarkRun


def make_mark(out: Path, run: Path, toys: Path, extractor: Path, seed: int, settings: Mapping[str, Any]) -> float:
    """Train the mark, or go on, or take the finished run; write adapter and bits.

    Args:
        out: Folder to write; one that is there is replaced.
        run: Run directory in the cache.
        toys: The base model.
        extractor: That will read the mark.
        seed: Of the bits and of the training.
        settings: Of the run, over the defaults of `lrdiff train watermark`.

    Returns:
        Seconds of all training steps.

    Raises:
        RunError: The run was begun with other figures or another extractor, or was asked to stop.
    """
    bits = "".join(
        str(bit) for bit in torch.randint(0, 2, (load(extractor).bits,), generator=stream(seed, "mark")).tolist()
    )
    secret = run.with_name(f"{run.name}-bits") / "example.txt"
    secret.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(secret, bits.encode())
    # A shipped model goes by its name, which is true on every machine.
    model = toys.name if toys == MODELS / toys.name else str(toys)
    own = {"bits_file": secret, "extractor": extractor, **settings.get("method", {})}
    config = WatermarkRun.model_validate({"seed": seed, **settings, "model": model, "method": own})
    record = config.model_dump(mode="json")
    begun = run.exists()
    made = rundir.open_run(run) if begun else rundir.create(run, "watermark", record)
    if made.read()["config"] != record:
        raise RunError(f"{run}: was begun with other figures; remove it, or go back to those")
    if made.read()["state"] != "finished" and execute(made, resume=begun) != "finished":
        raise RunError(f"{run}: stopped; the same command goes on from there")
    with replacing_folder(out) as folder:
        shutil.copyfile(made.artifact_path, folder / ADAPTER)
        (folder / BITS).write_text(f"{bits}\n", encoding="ascii")
    return training_seconds(run)
