"""`python -m tests.bench.sla_quality`: what sparse-linear attention costs in quality, before and after fine-tuning.

Full attention, sparse only (no linear branch), linear only, and both in three scopes, added up as in the paper or mixed
(`lrdiff/sla/mixing.py`), at several sparsities and seeds, with equal steps of velocity distillation: distance to the
full model's velocity, loss on held-out pictures, attributes
that the measuring probe reads, and distance of the pictures to the full model's at equal seeds. Every case is kept in a
file of its own, so the same command goes on where it was interrupted, and several may work side by side.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrdiff import backbones
from lrdiff.backbones import Backbone, embedded
from lrdiff.files import write_json
from lrdiff.generate import DTYPES
from lrdiff.generate import render as draw
from lrdiff.images import to_image
from lrdiff.probe import Probe, load_probe
from lrdiff.rng import stream
from lrdiff.sla import route, sla_attention
from lrdiff.sla.linear import linear_branch
from lrdiff.sla.maps import layer_tokens
from lrdiff.sla.models import processors
from lrdiff.sla.operator import project
from lrdiff.world.captions import describe, held_out_captions
from lrdiff.world.toys import render, sample_scenes
from tests.bench.result import RESULTS, command, write
from trainers.config import RunConfig
from trainers.data import find_samples
from trainers.denoise.pictures import encode
from trainers.embedded.evaluate import UNSEEN_SEED, read_images
from trainers.engine import Engine
from trainers.loop import fit
from trainers.registry import run_config_class
from trainers.run import build
from trainers.sla.method import Sla

SUMS = ("marginal", "noncritical", "all")
MIXED = tuple(f"mixed {scope}" for scope in SUMS)
KINDS = ("sparse only", "linear only", *SUMS, *MIXED)
WHEN = ("before", "after")
GRID = ("0.9:3", "0.8:1", "0.95:1")
COLUMNS = (
    "attention", "sparsity", "seeds", "distance of velocities, before", "after", "spread over seeds",
    "loss on held-out, after", "attributes read, before", "after", "distance of pictures, before", "after",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured with.

    Attributes:
        model: A model of the toy world.
        folder: For rendered pictures and for what has been measured, kept between calls.
        pictures: Number of pictures to train on; half as many are held out.
        steps: Of each fine-tune.
        batch: Pictures per step.
        captions: Number of pictures that are drawn and read.
        drawn: Sparsities at which pictures are drawn, by the first seed.
        sampling: Steps of drawing one.
        block: Tokens in a block of queries and of keys.
        device: Where to compute.
        dtype: Number format.
    """

    model: str
    folder: Path
    pictures: int
    steps: int
    batch: int
    captions: int
    drawn: tuple[float, ...]
    sampling: int
    block: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Case:
    """One fine-tune: a kind of attention, its sparsity and a seed."""

    kind: str
    sparsity: float
    seed: int

    @property
    def key(self) -> str:
        """Name of the file of what has been measured."""
        return f"{self.kind.replace(' ', '-')}_{self.sparsity:g}_{self.seed}"


@dataclass(frozen=True)
class Whole:
    """The model with full attention: what every case is held against.

    Attributes:
        noisy: Held-out latents with noise, [N, C, h, w].
        times: Of the noise, [N].
        cond: Of their captions.
        target: What a perfect model would predict.
        velocity: What this one predicts.
        images: Its pictures of the held-out captions.
        tokens: Of its longest attention.
    """

    noisy: Tensor
    times: Tensor
    cond: dict[str, Tensor]
    target: Tensor
    velocity: Tensor
    images: Tensor
    tokens: int


def pictures(plan: Plan, side: int) -> None:
    """Render what is learned from, and what is held out, with captions."""
    for name, start, count in (("train", 0, plan.pictures), ("held-out", plan.pictures, max(1, plan.pictures // 2))):
        folder = plan.folder / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        for index, scene in enumerate(sample_scenes(UNSEEN_SEED, range(start, start + count), objects="single")):
            (folder / f"{index:04d}.txt").write_text(describe(scene))
            small: Image.Image = to_image(render([scene]).images[0])
            small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")


def cases(kinds: Sequence[str], grid: Sequence[str]) -> list[Case]:
    """Return what is to be measured, the first seed first. Without a softmax branch there is one sparsity, 1."""
    pairs = [(float(sparsity), int(seeds)) for sparsity, seeds in (entry.split(":") for entry in grid)]
    wanted = [
        Case(kind, 1.0 if kind == "linear only" else sparsity, seed)
        for seed in range(max(seeds for _, seeds in pairs))
        for sparsity, seeds in pairs
        if seed < seeds
        for kind in kinds
    ]
    return list(dict.fromkeys(wanted))


def config(plan: Plan, case: Case) -> RunConfig[Any]:
    """Return the run of a case: what `lrdiff train sla` does by default, at this length."""
    scope = case.kind.split()[-1] if case.kind in SUMS + MIXED else "all"
    method = {} if case.kind in MIXED else {"mix": 0.0}
    if case.kind == "linear only":
        method["projection_lr"] = 1.0  # where there is nothing but the linear branch, it has to learn at the full rate
    return run_config_class("sla").model_validate(
        {
            "model": plan.model,
            "data": {"images": str(plan.folder / "train"), "batch_size": plan.batch},
            "method": {
                "topk": round(1 - case.sparsity, 4) or 1.0,
                "scope": scope,
                "block_q": plan.block,
                "block_k": plan.block,
                **method,
            },
            "optim": {"steps": plan.steps, "warmup": min(20, plan.steps // 4)},
            "precision": {"device": plan.device, "dtype": plan.dtype},
            "seed": case.seed,
        }
    )


@contextmanager
def branches(method: Sla, kind: str) -> Iterator[None]:
    """Leave out a branch for a while, where the kind has only one: O = Os, or O = Ol + Proj(Ol) over all blocks."""

    def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q.to(v.dtype), k.to(v.dtype)
        return sla_attention(q, k, v, layout="blhd", **method.attention.router()).flatten(2)

    def linear(q: Tensor, k: Tensor, v: Tensor, proj: Any) -> Tensor:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out = linear_branch(*heads, route(q, k, layout="blhd"), "all", "softmax").transpose(1, 2)  # pyright: ignore
        return (out + project(proj, out)).flatten(2)

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
def whole(plan: Plan, backbone: Backbone) -> Whole:
    """Let the model with full attention predict and draw."""
    x, times, cond, target = noisy(plan, backbone)
    tokens = max(layer_tokens(backbone).values())
    return Whole(x, times, cond, target, velocity(backbone, x, times, cond), full_images(backbone, plan), tokens)


@torch.no_grad()
def noisy(plan: Plan, backbone: Backbone) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Return the held-out latents with noise, its times, their captions, and what a perfect model would predict."""
    samples = find_samples(plan.folder / "held-out", "")
    clean = torch.stack([m[0] for m in encode(backbone, samples, flip=False, buckets=False).moments]).float()
    rng = stream(0, "sla quality")
    noise = torch.randn(clean.shape, generator=rng)
    times = backbone.schedule.draw_times(len(clean), rng)
    cond = {name: value.cpu() for name, value in backbone.condition([sample.caption for sample in samples]).items()}
    schedule = backbone.schedule
    return schedule.add_noise(clean, noise, times), times, cond, schedule.target(clean, noise, times)


@torch.no_grad()
def velocity(backbone: Backbone, noisy: Tensor, times: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Return what the model predicts, in parts."""
    device = backbone.device
    parts = [
        backbone.predict(noisy[i : i + 8].to(device), times[i : i + 8].to(device),
                         {name: value[i : i + 8].to(device) for name, value in cond.items()}).float().cpu()
        for i in range(0, len(noisy), 8)
    ]  # fmt: skip
    return torch.cat(parts)


def full_images(backbone: Backbone, plan: Plan) -> Tensor:
    """Return the pictures of the model with full attention, from an earlier call where there was one."""
    path = plan.folder / f"full-{plan.captions}-{plan.sampling}.safetensors"
    if not path.exists():
        save_file({"images": drawn(backbone, plan).contiguous()}, path)
    return load_file(path)["images"]


def drawn(backbone: Backbone, plan: Plan) -> Tensor:
    """Draw the held-out captions, picture i from seed i."""
    texts = [text for text, _ in held_out_captions(plan.captions, UNSEEN_SEED)]
    parts = [
        draw(backbone, texts[i : i + 8], list(range(i, min(i + 8, len(texts)))), steps=plan.sampling).float().cpu()
        for i in range(0, len(texts), 8)
    ]
    return torch.cat(parts)


def read(probe: Probe, images: Tensor, plan: Plan) -> float:
    """Return the share of attributes that the probe reads as the captions say."""
    labels = [labels for _, labels in held_out_captions(plan.captions, UNSEEN_SEED)]
    return read_images(probe, [images], labels).mean_accuracy()


def measure(plan: Plan, case: Case, probe: Probe, full: Whole, backbone: Backbone) -> dict[str, float]:
    """Carry out a case and return its figures."""
    settings = config(plan, case)
    engine = Engine(settings.precision)
    method = build("sla", settings, engine)
    assert isinstance(method, Sla)
    found: dict[str, float] = {}
    shown = case.seed == 0 and (case.sparsity in plan.drawn or case.kind == "linear only")
    own = backbone.denoiser
    with branches(method, case.kind):
        for name in WHEN:
            if name == "after":
                fit(method, settings.optim, engine=engine, seed=case.seed)
                method.eval()
            backbone.denoiser = method.denoiser  # that backbone has its text encoders still
            out = velocity(backbone, full.noisy, full.times, full.cond)
            found[f"velocity {name}"] = float((out - full.velocity).square().mean())
            found[f"loss {name}"] = float((out - full.target).square().mean())
            if shown:
                images = drawn(backbone, plan)
                found[f"attributes {name}"] = read(probe, images, plan)
                found[f"pictures {name}"] = float((images - full.images).square().mean().sqrt())
    backbone.denoiser = own
    found["sparsity"] = 1.0 if case.kind == "linear only" else method.attention.sparsity(full.tokens)
    return found


def rows(kept: dict[str, dict[str, float]]) -> list[list[Any]]:
    """Return the table: means over seeds; full attention first."""
    table: list[list[Any]] = [
        ["full", 0.0, None, 0.0, 0.0, None, kept["full"]["loss"], *[kept["full"]["attributes"]] * 2, 0.0, 0.0]
    ]
    for kind in KINDS:
        name = kind.replace(" ", "-")
        for sparsity in sorted({float(key.split("_")[1]) for key in kept if key.startswith(f"{name}_")}):
            runs = [value for key, value in sorted(kept.items()) if key.startswith(f"{name}_{sparsity:g}_")]
            before, after, loss = (
                [run[key] for run in runs] for key in ("velocity before", "velocity after", "loss after")
            )
            spread = max(after) - min(after) if len(runs) > 1 else None
            means = [statistics.fmean(before), statistics.fmean(after), spread, statistics.fmean(loss)]
            drawn_once = [runs[0].get(f"{what} {when}") for what in ("attributes", "pictures") for when in WHEN]
            table.append([kind, runs[0]["sparsity"], len(runs), *means, *drawn_once])
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sla_quality", description=__doc__)
    parser.add_argument("--model", default="toys-dit")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench/sla_quality"), help="of what is kept")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--captions", type=int, default=24)
    parser.add_argument("--drawn", type=float, nargs="*", default=(0.9,))
    parser.add_argument("--sampling", type=int, default=8)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--grid", nargs="+", default=GRID, metavar="SPARSITY:SEEDS")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--name", default="sla_quality", help="of the result")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.model == parser.get_default("model") and given.model not in embedded.names():
        print(f"not measured: {given.model} is not in assets/models; make it with lrdiff embedded make {given.model}")
        return 0
    device = backbones.pick_device(given.device)
    backbone = backbones.load(given.model, device=device, dtype=DTYPES[given.dtype])
    plan = Plan(given.model, given.folder, given.pictures, given.steps, given.batch, given.captions,
                tuple(given.drawn), given.sampling, given.block, device.type, given.dtype)  # fmt: skip
    pictures(plan, backbone.resolution)
    probe = load_probe("probe-b")
    folder = given.folder / f"{given.steps}-steps"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [case for case in cases(given.kinds, given.grid) if not (folder / f"{case.key}.json").exists()]
    if wanted:
        full = whole(plan, backbone)
        error = float((full.velocity - full.target).square().mean())
        write_json(folder / "full.json", {"attributes": read(probe, full.images, plan), "loss": error})
        for case in wanted:
            if (folder / f"{case.key}.json").exists():
                continue  # another process was here
            found = measure(plan, case, probe, full, backbone)
            write_json(folder / f"{case.key}.json", found)
            print(case.key, found, flush=True)
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    note = (
        f"{plan.steps} steps of velocity distillation of a LoRA and the projections, {plan.batch} pictures each; "
        f"velocities on {max(1, plan.pictures // 2)} held-out pictures; {plan.captions} captions drawn in "
        f"{plan.sampling} steps, by the first seed; blocks of {plan.block} tokens; {plan.dtype}."
    )
    if given.results == RESULTS:
        write(given.name, command("sla_quality", arguments or []), COLUMNS, rows(kept), note, {"cases": kept})
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
