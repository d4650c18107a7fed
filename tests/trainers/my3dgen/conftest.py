"""A small generator on disk, and photos of somebody that it can nearly draw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lrdiff.images import save_png
from lrdiff.rng import derive
from lrdiff.triplane.cameras import look_at
from lrdiff.triplane.store import load, save
from tests.lrdiff.triplane.tiny import MINI, TINY, tiny
from trainers.engine import Engine
from trainers.my3dgen.config import My3DGenRun
from trainers.my3dgen.method import My3DGen

YAWS = (-0.3, 0.0, 0.5)


@dataclass(frozen=True, slots=True)
class Studio:
    """Inputs of a run."""

    model: Path
    superres: Path
    images: Path

    def config(self, **changes: Any) -> My3DGenRun:
        """Return a short run; `changes` are dotted names with `__` for the dot."""
        base: dict[str, Any] = {
            "model": str(self.model),
            "data": {"images": str(self.images), "batch_size": 2},
            "method": {"anchor_steps": 8},
            "optim": {"steps": 4, "warmup": 1},
            "watch": {"preview_count": 2},
        }
        for name, value in changes.items():
            *sections, last = name.split("__")
            place = base
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return My3DGenRun.model_validate(base)

    def method(self, **changes: Any) -> tuple[My3DGen, My3DGenRun, Engine]:
        """Build the method as a run does."""
        config = self.config(**changes)
        engine = Engine(config.precision)
        torch.manual_seed(derive(config.seed, "init"))
        return My3DGen(config, "my3dgen", engine), config, engine


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    root = tmp_path_factory.mktemp("studio")
    small = dataclasses.replace(
        MINI, w=32, channels=(32, 32, 16), render=dataclasses.replace(MINI.render, coarse=10, side=16)
    )
    made = tiny(seed=3, config=small)
    with torch.no_grad():
        made.decoder.net[2].weight *= 3.0
    save(made, root / "model", {"made": "by a test"})
    save(tiny(config=dataclasses.replace(TINY, c=0)), root / "superres", {"made": "by a test"})
    generator = load(root / "model")
    z = torch.randn(1, 24, generator=torch.Generator().manual_seed(5)).expand(len(YAWS), -1)
    cameras = look_at(torch.tensor(YAWS), torch.zeros(len(YAWS)), small.radius, small.focal)
    (root / "images").mkdir()
    for number, picture in enumerate(generator.view(generator.mapping(z), cameras).image):
        picture = picture.clone()
        picture[0, 6:9, 6:9] = 1.0  # a mark that the generator has never seen
        save_png(picture, root / "images" / f"{number}.png")
    return Studio(model=root / "model", superres=root / "superres", images=root / "images")
