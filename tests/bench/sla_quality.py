"""`python -m tests.bench.sla_quality`: what sparse-linear attention costs in quality, before and after fine-tuning.

Full attention, sparse only (no linear branch), linear only, and both in three scopes, at several sparsities and seeds,
with equal steps of velocity distillation: distance to the full model's velocity, loss on held-out pictures, attributes
that the measuring probe reads, and distance of the pictures to the full model's at equal seeds. What has been measured
is kept after every case, so the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lrdiff import backbones
from lrdiff.backbones import embedded
from lrdiff.files import write_json
from lrdiff.generate import render as draw
from lrdiff.images import to_image
from lrdiff.probe import Probe, load_probe
from lrdiff.rng import stream
from lrdiff.sla import route, sla_attention
from lrdiff.sla.linear import linear_branch
from lrdiff.sla.models import processors
from lrdiff.world.captions import describe, held_out_captions
from lrdiff.world.toys import render, sample_scenes
from tests.bench.result import RESULTS, write
from trainers.config import RunConfig
from trainers.embedded.evaluate import UNSEEN_SEED, read_images
from trainers.engine import Engine
from trainers.loop import fit
from trainers.registry import run_config_class
from trainers.run import build
from trainers.sla.method import Sla

SPARSITIES = (0.80, 0.90, 0.95)
KINDS = ("sparse only", "linear only", "marginal", "noncritical", "all")
SEEDS = (0, 1, 2)
COLUMNS = (
    "attention", "sparsity", "seeds", "distance of velocities, before", "after", "validation loss, after",
    "attributes read, before", "after", "distance of pictures, before", "after",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured with.

    Attributes:
        model: A model of the toy world.
        folder: For rendered pictures, kept between calls.
        side: Of the pictures in pixels.
        pictures: Number of pictures to train on; a quarter as many are held out.
        steps: Of each fine-tune.
        captions: Number of pictures that are drawn and read.
        sampling: Steps of drawing one.
        block: Tokens in a block of queries and of keys.
        device: Where to compute.
    """

    model: str
    folder: Path
    side: int
    pictures: int
    steps: int
    captions: int
    sampling: int
    block: int
    device: str


@dataclass(frozen=True)
class Case:
    """One fine-tune: a kind of attention, its sparsity and a seed."""

    kind: str
    sparsity: float
    seed: int

    @property
    def key(self) -> str:
        """Name in the file of what has been measured."""
        return f"{self.kind}/{self.sparsity:g}/{self.seed}"


def pictures(plan: Plan) -> None:
    """Render what is learned from, and what is held out, with captions."""
    for name, start, count in (("train", 0, plan.pictures), ("held-out", plan.pictures, max(1, plan.pictures // 4))):
        folder = plan.folder / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        for index, scene in enumerate(sample_scenes(UNSEEN_SEED, range(start, start + count), objects="single")):
            (folder / f"{index:04d}.txt").write_text(describe(scene))
            small: Image.Image = to_image(render([scene]).images[0])
            small.resize((plan.side, plan.side), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")


def cases(kinds: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Case]:
    """Return what is to be measured, seed by seed. Without a softmax branch there is one sparsity, 1."""
    wanted = [Case(k, 1.0 if k == "linear only" else s, seed) for seed in seeds for s in sparsities for k in kinds]
    return list(dict.fromkeys(wanted))


def config(plan: Plan, case: Case) -> RunConfig[Any]:
    """Return the run of a case."""
    topk = round(1 - case.sparsity, 4) or 1.0
    scope = case.kind if case.kind in ("marginal", "noncritical", "all") else "all"
    return run_config_class("sla").model_validate(
        {
            "model": plan.model,
            "data": {"images": str(plan.folder / "train"), "validation": str(plan.folder / "held-out")},
            "method": {"topk": topk, "scope": scope, "block_q": plan.block, "block_k": plan.block, "train": "all"},
            "optim": {"steps": plan.steps, "lr": 2e-4, "warmup": min(20, plan.steps // 4)},
            "precision": {"device": plan.device},
            "seed": case.seed,
        }
    )


@contextmanager
def branches(method: Sla, kind: str) -> Iterator[None]:
    """Leave out a branch for a while, where the kind has only one: O = Os, or O = Ol + Proj(Ol) over all blocks."""

    def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sla_attention(q, k, v, layout="blhd", **method.attention.router()).flatten(2)

    def linear(q: Tensor, k: Tensor, v: Tensor, proj: Any) -> Tensor:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out = linear_branch(*heads, route(q, k, layout="blhd"), "all", "softmax").transpose(1, 2)  # pyright: ignore
        return (out + proj(out)).flatten(2)

    found: list[Any] = [processor for _, processor in processors(method.denoiser)]
    if kind == "sparse only":
        for processor in found:
            processor.attend = sparse
    if kind == "linear only":
        for processor in found:
            processor.attend = partial(linear, proj=processor.proj)
    yield
    for processor in found:
        processor.__dict__.pop("attend", None)


@torch.no_grad()
def losses(method: Sla) -> dict[str, float]:
    """Return the distance of velocities and the model's own loss, both on held-out pictures."""
    clean = torch.stack([moments[0] for moments in method.held_out_latents.moments])
    rng = stream(0, "sla quality")
    noise = torch.randn(clean.shape, generator=rng)
    times = method.backbone.schedule.draw_times(len(clean), rng)
    cond = method._conditions([sample.caption for sample in method.held_out])
    noisy = method.backbone.schedule.add_noise(clean, noise, times)
    out = method.backbone.predict(noisy, times, cond)
    with method._teaching():
        full = method.backbone.predict(noisy, times, cond)
    target = method.backbone.schedule.target(clean, noise, times)
    errors = {"velocity": out - full, "loss": out - target, "loss of full": full - target}
    return {name: float(error.square().mean()) for name, error in errors.items()}


def drawn(backbone: Any, plan: Plan) -> Tensor:
    """Draw the held-out captions, picture i from seed i."""
    texts = [text for text, _ in held_out_captions(plan.captions, UNSEEN_SEED)]
    parts = [
        draw(backbone, texts[i : i + 4], list(range(i, min(i + 4, len(texts)))), steps=plan.sampling).cpu()
        for i in range(0, len(texts), 4)
    ]
    return torch.cat(parts)


def read(probe: Probe, images: Tensor, plan: Plan) -> float:
    """Return the share of attributes that the probe reads as the captions say."""
    labels = [labels for _, labels in held_out_captions(plan.captions, UNSEEN_SEED)]
    return read_images(probe, [images], labels).mean_accuracy()


def measure(plan: Plan, case: Case, probe: Probe, full: Tensor, backbone: Any) -> dict[str, float]:
    """Carry out a case and return its figures."""
    settings = config(plan, case)
    engine = Engine(settings.precision)
    method = build("sla", settings, engine)
    assert isinstance(method, Sla)
    found: dict[str, float] = {}
    with branches(method, case.kind):
        for name in ("before", "after"):
            if name == "after":
                fit(method, settings.optim, engine=engine, seed=case.seed)
                method.eval()
            found |= {f"{key} {name}": value for key, value in losses(method).items()}
            backbone.denoiser = method.denoiser  # which has its text encoders still
            images = drawn(backbone, plan)
            found[f"attributes {name}"] = read(probe, images, plan)
            found[f"pictures {name}"] = float((images - full).square().mean().sqrt())
    return found


def rows(kept: dict[str, dict[str, float]]) -> list[list[Any]]:
    """Return the table: means over seeds; full attention first."""
    whole = kept["full"]
    table: list[list[Any]] = [
        ["full", 0.0, 1, 0.0, 0.0, whole["loss"], whole["attributes"], whole["attributes"], 0.0, 0.0]
    ]
    for kind in KINDS:
        for sparsity in sorted({float(key.split("/")[1]) for key in kept if key.startswith(f"{kind}/")}):
            runs = [value for key, value in kept.items() if key.startswith(f"{kind}/{sparsity:g}/")]
            names = ("velocity before", "velocity after", "loss after", "attributes before", "attributes after",
                     "pictures before", "pictures after")  # fmt: skip
            table.append([kind, sparsity, len(runs), *(statistics.fmean(run[name] for run in runs) for name in names)])
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_quality", description=__doc__)
    parser.add_argument("--model", default="toys-dit")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench/sla_quality"), help="of what is kept")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--sampling", type=int, default=20)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS / "sla_quality.json", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.model == parser.get_default("model") and given.model not in embedded.names():
        print(f"not measured: {given.model} is not in assets/models; make it with lrdiff embedded make {given.model}")
        return 0
    device = backbones.pick_device(given.device)
    backbone = backbones.load(given.model, device=device)
    plan = Plan(given.model, given.folder, backbone.resolution, given.pictures, given.steps, given.captions,
                given.sampling, given.block, device.type)  # fmt: skip
    pictures(plan)
    probe = load_probe("probe-b")
    path = given.folder / "kept.json"
    kept: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    own = backbone.denoiser
    full = drawn(backbone, plan)
    for case in cases(given.kinds, given.sparsities, given.seeds):
        if case.key not in kept:
            kept[case.key] = measure(plan, case, probe, full, backbone)
            kept["full"] = {"attributes": read(probe, full, plan), "loss": kept[case.key]["loss of full before"]}
            write_json(path, kept)
            print(case.key, kept[case.key], flush=True)
    backbone.denoiser = own
    note = f"{plan.captions} captions, {plan.steps} steps of velocity distillation, blocks of {plan.block} tokens."
    if given.results.parent == RESULTS:
        write("sla_quality", "python -m tests.bench.sla_quality", COLUMNS, rows(kept), note, {"cases": kept})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
