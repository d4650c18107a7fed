"""What every method is tried on: a tiny base model, another one, two folders of pictures, one short run."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lrdiff.artifact import Artifact
from tests.lrdiff.triplane.tiny import build_tiny_heads, write_cameras
from tests.networks import arcface_state, lpips_state, write
from tests.tiny import build_tiny_mark, build_tiny_model, mark_settings
from tests.trainers.conftest import one_thread, save_pictures
from trainers.registry import METHODS, run_config_class
from trainers.run import execute
from trainers.rundir import RunDir, create

__all__ = ["one_thread"]


@dataclass(frozen=True, slots=True)
class World:
    """Inputs of the runs, read-only by agreement."""

    model: Path
    other_model: Path
    images: Path
    other_images: Path
    mark: Path
    other_mark: Path
    heads: Path
    other_heads: Path
    cameras: Path
    arcface: Path
    lpips: Path

    def settings(self, method: str, **changes: Any) -> dict[str, Any]:
        """Return a short run that uses everything a run can do; `changes` are dotted names with `__` for the dot."""
        base: dict[str, Any] = {
            "model": str(self.model),
            "data": {"images": str(self.images), "batch_size": 2},
            "method": self.own_settings(method),
            "optim": {"steps": 4, "warmup": 1},
            "watch": {
                "log_every": 2, "checkpoint_every": 2, "evaluate_every": 2,
                "preview_every": 4, "preview_steps": 2, "preview_count": 1,
            },
        }  # fmt: skip
        if method == "my3dgen":
            base["model"] = str(self.heads)
            del base["watch"]["preview_steps"]
        if "data.images" in run_config_class(method).unread:
            del base["data"]["images"]
        for name, value in changes.items():
            place = base
            *sections, last = name.split("__")
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = copy.deepcopy(value)
        return base

    def own_settings(self, method: str) -> dict[str, Any]:
        """Return the settings without which a method cannot or should not run here."""
        own: dict[str, dict[str, Any]] = {
            "watermark": mark_settings(self.mark),
            "my3dgen": {"anchor_steps": 2},
            "alignprop": {"sampling_steps": 3, "held_out_count": 1, "prompts": str(self.mark / "prompts.txt")},
            "sla": {"topk": 0.25, "block_q": 16, "block_k": 16},
        }
        return own.get(method, {})

    def run(self, path: Path, method: str, **changes: Any) -> RunDir:
        """Carry out a run in this process."""
        config = run_config_class(method).model_validate(self.settings(method, **changes))
        run = create(path, method, config.model_dump(mode="json"))
        execute(run)
        return run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    images = save_pictures(root / "images", 3)
    (images / "2.txt").write_text("a red cube")
    return World(
        model=build_tiny_model(root / "tiny"),
        other_model=build_tiny_model(root / "other", seed=1),
        images=images,
        other_images=save_pictures(root / "other-images", 2, size=60),
        mark=build_tiny_mark(root / "mark"),
        other_mark=build_tiny_mark(root / "other-mark", seed=1),
        heads=build_tiny_heads(root / "heads"),
        other_heads=build_tiny_heads(root / "other-heads", seed=1),
        cameras=write_cameras(root / "cameras.json", images),
        arcface=write(root / "arcface.pth", arcface_state()),
        lpips=write(root / "lpips.pth", lpips_state("vgg")),
    )


@pytest.fixture(scope="session", params=list(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    """Return the name of each registered method in turn."""
    return request.param


@pytest.fixture(scope="session")
def reference(method: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return the run that variations are compared with."""
    return world.run(tmp_path_factory.mktemp("reference") / method, method)


MEASURED = re.compile(r"\d+ steps at|memory:|disk:")
"""Lines of the preflight that a clock or the machine decides."""


def observe(run: RunDir) -> dict[str, Any]:
    """Return what a user can see of a run, apart from its settings and from what a clock decides."""
    files = sorted(p for p in run.path.rglob("*") if p.is_file())
    tensors = Artifact.load(run.artifact_path).tensors
    clock = ("time", "seconds_per_step")
    return {
        "weights": _digest(*(tensors[name].numpy().tobytes() for name in sorted(tensors))),
        "shapes": {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        "files": [str(p.relative_to(run.path)) for p in files],
        "metrics": json.dumps([{k: v for k, v in row.items() if k not in clock} for row in run.metrics()]),
        "previews": _digest(*(p.read_bytes() for p in files if p.suffix == ".png")),
        "device": run.read()["device"],
        "plan": [line for line in run.read()["preflight"] if not MEASURED.match(line)],
    }


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()
