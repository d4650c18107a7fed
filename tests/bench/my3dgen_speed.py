"""`python -m tests.bench.my3dgen_speed`: views per second, steps of tuning, and the time of a personal head.

The shipped generator, and the published configuration of 512 px with random weights: time and memory do not depend on
them. On a GPU super-resolution is in half precision, as published, and the GPU's memory is measured too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrdiff.allocator import keep_freed_memory
from lrdiff.assets import ASSETS
from lrdiff.triplane.cameras import frontal
from lrdiff.triplane.config import eg3d_config
from lrdiff.triplane.generator import TriplaneGenerator, View
from lrdiff.triplane.lora import LoraConfig, Personal
from lrdiff.triplane.losses import reconstruction
from lrdiff.triplane.store import find, load
from tests.bench.result import command, write
from tests.bench.sla_attention import medians

PHOTOS = ASSETS / "people" / "somebody-with-glasses" / "photos"
PUBLISHED = "26 to 36 on an RTX 3090"
"""Views per second of EG3D at 512 px (arXiv 2112.07945)."""
GOALS = {"cpu": "180 on two cores", "cuda": "60"}
"""Seconds of a personal head."""
MODELS = ("heads", "ffhq512")


def build(name: str, device: str) -> TriplaneGenerator:
    """Return the shipped generator, or a published configuration with random weights."""
    if name == "heads":
        return load(find(name)).to(device)
    torch.manual_seed(0)
    return TriplaneGenerator(eg3d_config(name)).eval().requires_grad_(False).to(device)


def speed(generator: TriplaneGenerator, device: str, repeats: int) -> dict[str, float]:
    """Return views per second with planes kept and with planes made for every view."""
    own = generator.config
    camera = frontal(own).to(device)
    with torch.no_grad():
        ws = generator.mapping(torch.zeros(1, own.z, device=device), camera)
        planes = generator.planes(ws)

        def view(kept: Tensor | None) -> View:
            return generator.view(ws, camera, planes=kept, half=device == "cuda")

        runs: dict[str, Callable[[], Any]] = {"kept": lambda: view(planes), "made": lambda: view(None)}
        found = medians(runs, device, repeats)
    return {name: 1000.0 / value for name, value in found.items()}


def tuning(generator: TriplaneGenerator, device: str, repeats: int) -> tuple[float, float | None]:
    """Return the milliseconds of a step of LoRA r = 1 on one whole photo, and the GPU's peak memory in MiB."""
    own = generator.config
    photo = torch.rand(1, 3, own.side, own.side, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    small = torch.nn.functional.interpolate(photo, (own.render.side,) * 2, mode="area")
    camera = frontal(own).to(device)
    with torch.no_grad():
        ws = generator.mapping(torch.zeros(1, own.z, device=device), camera)
    personal = Personal(generator, LoraConfig())
    optimizer = torch.optim.AdamW([p for _, p in personal.named_parameters()], lr=1e-4, fused=device == "cuda")
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        seen = generator.view(ws, camera, rng=rng)
        (reconstruction(seen.image, photo) + reconstruction(seen.raw, small)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = medians({"step": step}, device, repeats)["step"]
    personal.remove()
    return found, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def person() -> float:
    """Return the seconds in which the command line learns a head from ten photos, by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "my3dgen", "--data.images", str(PHOTOS), "--out", str(Path(folder) / "run")]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "app.cli", *words], check=True, stderr=subprocess.DEVNULL)
        return time.monotonic() - begin


def main(arguments: list[str]) -> int:
    """Measure, print, and write `my3dgen_speed.json`, on a GPU `my3dgen_speed_gpu.json`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.my3dgen_speed", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = person()
    rows: list[list[Any]] = [["heads: a personal head, cameras unknown, seconds", seconds, GOALS[device]]]
    keep_freed_memory()
    torch.set_num_threads(1)
    for name in given.models:
        generator = build(name, device)
        own = generator.config
        views = speed(generator, device, given.repeats)
        step, peak = tuning(generator, device, given.repeats)
        label = f"{name}, {own.side} px of {own.render.side} rendered: "
        published = PUBLISHED if name == "ffhq512" and device == "cuda" else ""
        rows.append([label + "views per second, planes kept", views["kept"], published])
        rows.append([label + "views per second, planes made anew", views["made"], ""])
        rows.append([label + "step of tuning, one whole photo, milliseconds", step, ""])
        if peak is not None:
            rows.append([label + "peak memory of tuning, MiB", peak, ""])
        del generator
    for row in rows:
        print(*(f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row), sep="  ")
    rest = {
        "cpu": "the rest by the processor's time, with one thread",
        "cuda": "the rest by the GPU's, with super-resolution in half precision where nothing is learned",
    }
    note = (
        f"A personal head by the clock, with all cores; {rest[device]}. ffhq512 is EG3D's configuration with random "
        "weights. Medians of rounds after a first one."
    )
    name = "my3dgen_speed" + ("_gpu" if device == "cuda" else "")
    write(name, command("my3dgen_speed", arguments), ["", "measured", "goal or published"], rows, note)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
