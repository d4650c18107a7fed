"""Personal heads of unseen people: what each way of tuning gains, and what it costs.

python -m tests.bench.my3dgen_evidence [--subjects 6] [--minutes 20]

Ten photos of each subject, mostly of one side, with given cameras in all arms but one; every subject has a mark that
the prior cannot draw.
Parts are kept in .cache/bench; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.assets import ASSETS
from lrdiff.files import write_json
from lrdiff.images import save_png
from lrdiff.probe import load_probe
from lrdiff.rng import stream
from lrdiff.triplane.generator import TriplaneGenerator, View
from lrdiff.triplane.inversion import Anchors, InversionConfig, invert
from lrdiff.triplane.losses import psnr, ssim
from lrdiff.triplane.personal import orbit
from lrdiff.triplane.poses import yaw_pitch
from lrdiff.triplane.store import find, fingerprint, load
from lrdiff.world.heads import LATENT, ONE_SIDED_MARKS
from tests.bench.my3dgen_subjects import MARKS, PHOTOS, VIEWED, Subject, Truth, truth
from tests.bench.result import command, write
from trainers.config import PrecisionConfig
from trainers.engine import Engine
from trainers.loop import fit
from trainers.my3dgen.config import My3DGenRun
from trainers.my3dgen.method import My3DGen

MEASURE = "heads-probe-b"
"""The identity network that takes part in no loss."""
SIDE = 64
"""Of the pictures that are measured."""
VISIBLE = 0.12
"""A mark is where it changes a colour by more, in [0, 1]."""
CACHE = ASSETS.parent / ".cache" / "bench" / "my3dgen"

WARMUP = 10
"""Steps, the trainer's own default, like the rest of the plan."""
MIRRORED = {"symmetry": 1.0, "symmetry_form": "photos"}
PIXELS = {"symmetry": 0.3, "symmetry_form": "pixels", "symmetry_every": 2}
PLAIN = {"form": "plain"}
ARMS: dict[str, dict[str, Any] | None] = {
    "W inversion only": None,
    "LoRA r = 1": {},
    "full fine-tuning": {"full": True},
    "LoRA r = 1, mirrored photos": MIRRORED,
    "plain LoRA r = 1": PLAIN,
    "plain LoRA r = 1, cameras unknown": {**PLAIN, "cameras": None, "refine": True},
    "LoRA r = 1, decoder frozen": {"decoder": False},
    "LoRA r = 4": {"r": 4, "alpha": 4.0},
    "full fine-tuning, mirrored photos": {"full": True, **MIRRORED},
    "LoRA r = 1, symmetry of pixels": PIXELS,
    "LoRA r = 2": {"r": 2, "alpha": 2.0},
    "plain LoRA r = 1, mirrored photos": {**PLAIN, **MIRRORED},
    "LoRA r = 2, mirrored photos": {"r": 2, "alpha": 2.0, **MIRRORED},
    "LoRA r = 4, mirrored photos": {"r": 4, "alpha": 4.0, **MIRRORED},
}
"""alpha = r, so that every rank has the same scale. Plain: a 3 x 3 convolution's change has rank r, otherwise 3 r."""
SYMMETRIC = "LoRA r = 1, mirrored photos"


@dataclass(frozen=True)
class Plan:
    """How long to search and to tune.

    Attributes:
        anchor_steps: Of the search.
        anchor_side: Pixels in a row that each step of the search compares.
        steps: Of the tuning.
        batch: Photos per step.
        lr: Of low-rank matrices; weights trained whole take the trainer's default share of it.
        seed: Of all that is drawn.
    """

    anchor_steps: int = 60
    anchor_side: int = 32
    steps: int = 200
    batch: int = 2
    lr: float = 8e-3
    seed: int = 0


def main(arguments: list[str]) -> int:
    """Measure what is missing, print, and write `my3dgen_evidence.json` of what there is."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.my3dgen_evidence", description=__doc__)
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further part after these")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="only the first so many")
    parser.add_argument("--name", default="", help="ending of the result's name")
    parser.add_argument("--model", default="heads")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    end, plan, found = time.monotonic() + 60 * given.minutes, Plan(), []
    arms = list(ARMS)[: given.arms]
    for number in range(given.subjects):
        for arm in arms:
            part = measured(number, arm, plan, given.model, may_start=time.monotonic() < end)
            if part:
                found.append(part)
                print(json.dumps(part))
    complete = [n for n in range(given.subjects) if sum(part["subject"] == n for part in found) == len(arms)]
    if not complete:
        print("no subject is complete; run the command again")
        return 1
    name = "my3dgen_evidence" + (f"_{given.name}" if given.name else "")
    report([part for part in found if part["subject"] in complete], arms, plan, given.threads, name, arguments)
    return 0


def measured(number: int, arm: str, plan: Plan, model: str, may_start: bool) -> dict[str, Any]:
    """Return the figures of a subject and an arm, from the cache if they are there; {} if they may not be begun."""
    key = json.dumps([number, arm, ARMS[arm], asdict(plan), fingerprint(find(model)), list(FIGURES)])
    path = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return json.loads(path.read_text())
    if not may_start:
        return {}
    figures = {"subject": number, "arm": arm} | measure(number, arm, plan, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)
    return figures


_anchors: dict[str, tuple[Anchors, float]] = {}
"""Found, with the seconds it took: arms whose cameras are known to the same degree share them."""


def measure(number: int, arm: str, plan: Plan, model: str) -> dict[str, Any]:
    """Train one arm on one subject, and compare with the world."""
    settings, subject = ARMS[arm], Subject.draw(number)
    base = load(find(model))
    shown = truth(number, base.config.side, base.config.render.side)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), shown.photos, subject.angles[:PHOTOS], base, settings or {}, plan, model)
        engine = Engine(config.precision)
        own = config.method
        doubled = own.symmetry > 0 and own.symmetry_form == "photos"
        key = f"{number} {plan} {model} {own.cameras is None} {doubled}"
        begin = time.process_time()
        known = _anchors.get(key)
        torch.manual_seed(plan.seed)
        trainer = My3DGen(config, "my3dgen", engine, known[0] if known else None)
        search = known[1] if known else time.process_time() - begin
        _anchors[key] = (trainer.learned, search)
        begin = time.process_time()
        if settings is not None:
            fit(trainer, config.optim, engine=engine, seed=plan.seed)
        seconds = search + (time.process_time() - begin if settings is not None else 0.0)
        trained = sum(p.numel() for _, p in trainer.personal.named_parameters()) if settings is not None else 0
        artifact = Path(folder) / "adapter.safetensors"
        trainer.artifact().save(artifact)
        size = artifact.stat().st_size if settings is not None else trainer.anchors.ws.numel() * 4
    found = compare(trainer.generator, trainer.anchors, subject, shown, base, plan)
    return found | {"mark": subject.mark, "parameters": trained, "bytes": size, "seconds": seconds, "search": search}


def _config(
    folder: Path, photos: Tensor, angles: Tensor, base: TriplaneGenerator, settings: dict[str, Any], plan: Plan,
    model: str,
) -> My3DGenRun:  # fmt: skip
    (folder / "photos").mkdir()
    for number, photo in enumerate(photos):
        save_png(photo, folder / "photos" / f"{number:02d}.png")
    cameras = folder / "cameras.json"
    cameras.write_text(json.dumps({f"{n:02d}.png": c.tolist() for n, c in enumerate(orbit(base, angles))}))
    own = {"cameras": cameras, "refine": False, "anchor_steps": plan.anchor_steps, "anchor_side": plan.anchor_side}
    return My3DGenRun.model_validate(
        {
            "model": model,
            "data": {"images": folder / "photos", "batch_size": plan.batch},
            "method": own | settings,
            "optim": {"steps": plan.steps, "lr": plan.lr, "warmup": WARMUP},
            "precision": PrecisionConfig(device="cpu"),
            "seed": plan.seed,
        }
    )


@torch.no_grad()
def compare(
    generator: TriplaneGenerator, anchors: Anchors, subject: Subject, shown: Truth, base: TriplaneGenerator, plan: Plan
) -> dict[str, float]:
    """Return how near a tuned generator comes to a person.

    PSNR, SSIM and the cosine of identities ("same") of the photos, of both sides, and of other expressions; depth
    errors, what is seen of the mark, and drift of other heads.

    Args:
        generator: Tuned.
        anchors: Of the photos.
        subject: Who it is.
        shown: What the world shows.
        base: The same generator before.
        plan: How other expressions are searched.
    """
    ws, probe = anchors.ws.expand(-1, base.config.latents, -1), load_probe(MEASURE)

    def alike(image: Tensor, meant: Tensor) -> dict[str, Tensor]:
        same = (probe.identity(image.clamp(-1, 1)) * probe.identity(meant)).sum(1)
        small, target = _measured(image), _measured(meant)
        return {"": psnr(small, target), "ssim_": ssim(small, target), "same_": same}

    def made(latents: Tensor, cameras: Tensor) -> View:
        return View(*(torch.cat(parts) for parts in zip(*(
            dataclasses.astuple(generator.view(w[None], c[None])) for w, c in zip(latents, cameras, strict=True)
        ), strict=True)))  # fmt: skip

    image = made(ws, anchors.cameras).image
    found = _means("photos", alike(image, shown.photos))
    off = (yaw_pitch(anchors.cameras, base) - subject.angles[:PHOTOS]).abs().mean(0)
    found |= {"yaw": float(off[0]), "pitch": float(off[1])}
    recall: list[float] = []
    for name, views in shown.turned.items():
        parts: dict[str, list[Tensor]] = {}
        for turned in views:
            seen = made(ws[:VIEWED], orbit(base, turned.angles))
            error = ((seen.depth - turned.depth).abs() * turned.mask).sum((1, 2, 3)) / turned.mask.sum((1, 2, 3))
            for kind, values in (alike(seen.image, turned.meant) | {"depth_": error}).items():
                parts.setdefault(kind, []).append(values)
            if turned.plain is not None:
                recall += mark_recall(*map(_measured, (seen.image, turned.meant, turned.plain)))
        found |= _means(name, {kind: torch.cat(values) for kind, values in parts.items()})
    if recall:
        found["mark_recall"] = statistics.fmean(recall)
    cameras = orbit(base, subject.angles[PHOTOS:])
    search = InversionConfig(steps=plan.anchor_steps, cameras="given", side=plan.anchor_side)
    with torch.enable_grad():
        other = invert(generator, shown.other, cameras, search)
    image = made(other.ws.expand(-1, base.config.latents, -1), cameras).image
    found |= _means("expressions", alike(image, shown.other))
    z = torch.randn(4, LATENT, generator=stream(0, "other people"))
    camera = orbit(base, torch.zeros(4, 2))
    one, other = (g.view(base.mapping(z), camera).image for g in (generator, base))
    found["others"] = float(psnr(one, other).clamp(max=99).mean())
    return found


def _means(name: str, values: dict[str, Tensor]) -> dict[str, float]:
    return {f"{kind}{name}": float(value.mean()) for kind, value in values.items()}


def _measured(image: Tensor) -> Tensor:
    """Return pictures at the side at which they are measured, 64 px, which takes the world's rough edges out."""
    return functional.interpolate(image, (SIDE, SIDE), mode="area")


def mark_recall(image: Tensor, marked: Tensor, plain: Tensor) -> list[float]:
    """Return, for each picture that shows the mark, the share of its pixels that are nearer to marked than to plain.

    Args:
        image: Made, [N, 3, S, S] in [-1, 1].
        marked: What should be seen.
        plain: The same without the mark.
    """
    where = (marked - plain).abs().mean(1) / 2 > VISIBLE
    nearer = (image - marked).square().sum(1) < (image - plain).square().sum(1)
    return [float(nearer[n][where[n]].float().mean()) for n in range(len(image)) if bool(where[n].any())]


def report(
    parts: list[dict[str, Any]], arms: list[str], plan: Plan, threads: int, called: str, arguments: list[str]
) -> None:
    """Print and write the means over subjects, and what symmetry does to symmetric and to one-sided ones."""
    rows: list[list[Any]] = []
    for name, label in FIGURES.items():
        each = [[part[name] for part in parts if part["arm"] == arm and name in part] for arm in arms]
        rows.append([label, *(statistics.fmean(values) if values else None for values in each)])
    first = [next(part for part in parts if part["arm"] == arm) for arm in arms]
    rows.append(["trained numbers", *(part["parameters"] for part in first)])
    rows.append(["kB", *(part["bytes"] // 1000 for part in first)])
    for row in rows:
        print(*(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row), sep="  ")
    subjects = sorted({part["subject"] for part in parts})
    effect = {}
    for kind, marks in (("symmetric", [m for m in MARKS if m not in ONE_SIDED_MARKS]), ("one-sided", ONE_SIDED_MARKS)):
        pairs = [
            _of(parts, n, SYMMETRIC)["unseen"] - _of(parts, n, "LoRA r = 1")["unseen"]
            for n in subjects
            if SYMMETRIC in arms and Subject.draw(n).mark in marks
        ]
        if pairs:
            effect[kind] = {"subjects": len(pairs), "gain_db": statistics.fmean(pairs), "each": pairs}
    said = "; ".join(f"{kind}: {e['gain_db']:+.2f} dB on {e['subjects']}" for kind, e in effect.items())
    write(
        called,
        command("my3dgen_evidence", arguments, without="--minutes"),
        ["means", *arms],
        rows,
        f"Means over {len(subjects)} unseen subjects, one seed, each with a mark that the prior cannot draw; "
        f"{plan.anchor_steps} steps for anchors, {plan.steps} of tuning, cameras given where nothing else is said. "
        f"Mirrored photos on the unseen side (LoRA r = 1): {said or 'not measured'}. "
        f"Identity: cosine between features of {MEASURE}, which is in no loss, of what is made and of what is meant. "
        f"{threads} thread(s).",
        {"parts": parts, "symmetry": effect, "plan": asdict(plan)},
    )


FIGURES = {
    "photos": "photos, dB",
    "ssim_photos": "photos, SSIM",
    "same_photos": "photos, identity",
    "seen": "seen side, dB",
    "ssim_seen": "seen side, SSIM",
    "same_seen": "seen side, identity",
    "depth_seen": "seen side, depth error",
    "mark_recall": "seen side, mark found",
    "unseen": "unseen side, dB",
    "ssim_unseen": "unseen side, SSIM",
    "same_unseen": "unseen side, identity",
    "depth_unseen": "unseen side, depth error",
    "expressions": "other expressions, dB",
    "ssim_expressions": "other expressions, SSIM",
    "same_expressions": "other expressions, identity",
    "yaw": "yaw, mean error in radians",
    "pitch": "pitch, mean error in radians",
    "others": "other heads as before, dB",
    "seconds": "processor seconds",
}
"""What is measured, and its name in the table. Parts that were kept without one of them are measured anew."""


def _of(parts: list[dict[str, Any]], subject: int, arm: str) -> dict[str, Any]:
    return next(part for part in parts if part["subject"] == subject and part["arm"] == arm)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
