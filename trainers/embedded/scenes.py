"""Pictures of the toy world rendered into shards, by several processes, resumable shard by shard.

Picture i of a set depends on the set's seed and i alone, so the order and the number of processes do not matter.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lrdiff.errors import DataError
from lrdiff.files import write_bytes, write_json
from lrdiff.world.scene import Scene
from lrdiff.world.subjects import sample_subject, subject_scene
from lrdiff.world.toys import render, sample_scenes
from trainers.embedded.shards import Shards

log = logging.getLogger(__name__)

VIEWS = 5
"""Pictures of each subject."""


@dataclass(frozen=True)
class SceneSet:
    """What a folder of shards holds.

    Attributes:
        kind: "scenes", or "subjects" with `VIEWS` pictures of each individual in a row.
        seed: Names the set.
        count: Number of pictures.
        shard: Pictures per file.
    """

    kind: Literal["scenes", "subjects"]
    seed: int
    count: int
    shard: int

    def part(self, number: int) -> list[tuple[Scene, dict[str, Any]]]:
        """Return the scenes of a shard with their records."""
        indices = range(number * self.shard, min(self.count, (number + 1) * self.shard))
        if self.kind == "scenes":
            return [(scene, scene.to_dict()) for scene in sample_scenes(self.seed, indices)]
        pictures = []
        for index in indices:
            scene = subject_scene(sample_subject(self.seed, index // VIEWS), self.seed, index)
            pictures.append((scene, {"subject": index // VIEWS, **scene.to_dict()}))
        return pictures


def render_set(folder: Path, wanted: SceneSet, *, processes: int = 1, device: str = "cpu") -> Shards:
    """Render what is missing of a set and open it.

    Args:
        folder: Where its shards are or go.
        wanted: What it is to hold.
        processes: How many render at once, each with one thread; 1 renders in this process.
        device: Where to render.

    Raises:
        DataError: The folder holds another set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / "set.json"
    record = {"kind": wanted.kind, "seed": wanted.seed, "count": wanted.count, "shard": wanted.shard}
    if description.exists() and json.loads(description.read_text()) != record:
        raise DataError(f"{folder}: holds another set of pictures than {record}; remove it or use another folder")
    write_json(description, record)
    missing = [n for n in range(-(-wanted.count // wanted.shard)) if not _file(folder, n).exists()]
    if missing:
        log.info("%s: rendering %d of %d pictures", folder, len(missing) * wanted.shard, wanted.count)
    if processes > 1 and len(missing) > 1:
        # Forked children of a process with running threads can hang.
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=fresh, initializer=_single_thread) as pool:
            jobs: list[Any] = [pool.submit(_render_shard, folder, wanted, number, device) for number in missing]
            _report(missing, [job.result for job in jobs])
    else:
        _report(missing, [_later(folder, wanted, number, device) for number in missing])
    return Shards.open(folder)


def _report(numbers: list[int], jobs: list[Callable[[], None]]) -> None:
    for number, job in zip(numbers, jobs, strict=True):
        job()
        log.info("shard %d rendered", number)


def _later(folder: Path, wanted: SceneSet, number: int, device: str) -> Callable[[], None]:
    return lambda: _render_shard(folder, wanted, number, device)


def _single_thread() -> None:
    torch.set_num_threads(1)


def _render_shard(folder: Path, wanted: SceneSet, number: int, device: str) -> None:
    """Write one shard; the pictures last, since a shard with pictures counts as complete."""
    pictures = wanted.part(number)
    images = render([scene for scene, _ in pictures], device=device).images.cpu()
    buffer = io.BytesIO()
    np.save(buffer, ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
    lines = "".join(json.dumps(record) + "\n" for _, record in pictures)
    file = _file(folder, number)
    write_bytes(file.with_suffix(".jsonl"), lines.encode())
    write_bytes(file, buffer.getvalue())


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.npy"
