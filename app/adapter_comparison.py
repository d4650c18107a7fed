"""Adapters against each other: every one on every subject with equal steps and seeds, one table and one plot.

What is measured, on the same prompts and seeds for all:

    subject fidelity   mean identity cosine of the images to pictures of the subject that were never trained on
    prompt fidelity    share of images whose place the probe reads as the one the prompt asked for
    diversity          mean cosine distance of the probe's features between two images of one adapter
    held-out loss      denoising loss on those pictures at fixed times and noise: the least noisy of all
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from app.demo import find_subject
from lrdiff.errors import ConfigError, DataError
from lrdiff.files import write_bytes, write_json
from lrdiff.generate import generate
from lrdiff.generate_config import GenerateConfig
from lrdiff.images import crop_to, read_image, to_tensor
from lrdiff.png import writable
from lrdiff.probe import Probe, load_probe
from lrdiff.world.captions import PLACE_PHRASES
from lrdiff.world.toys import PLACES
from trainers.config import RunConfig, describe_errors
from trainers.denoise.config import DenoiseSettings
from trainers.registry import METHODS, config_class, run_config_class
from trainers.run import execute
from trainers.rundir import RunDir, create, default_path, open_run

PROBE = "probe-b"
RECORD = "comparison.json"
SHARED = ("optim.steps", "seed", "model", "data.images", "data.validation", "watch.evaluate_every")
"""Settings of a run that one adapter cannot have to itself."""
LEGEND = """
subject    likeness to pictures that were never trained on: mean identity cosine, 1 is the same; +- over the runs
prompt     share of images in the place that was asked for
diversity  mean distance of two images of one adapter, 0 is the same image
loss       denoising loss on the pictures that were never trained on
"""
SIDE = 128
"""Side at which the probe is given pictures."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One adapter of a comparison.

    Attributes:
        label: As it was written, for people.
        method: Name in the registry.
        changes: Settings that differ from the defaults, by dotted name.
    """

    label: str
    method: str
    changes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """What one adapter did on one subject with one seed."""

    adapter: str
    subject: str
    seed: int
    parameters: int
    file_bytes: int
    seconds_per_step: float
    subject_fidelity: float
    prompt_fidelity: float
    diversity: float
    held_out_loss: float


def read_spec(text: str) -> Spec:
    """Read "lora", "lora:r=1,alpha=1" or "oft:optim.lr=0.001"; names without a dot are the adapter's own settings.

    Raises:
        ConfigError: No such adapter, or not of the form NAME:SETTING=VALUE,...
    """
    method, _, rest = text.partition(":")
    known = [name for name in METHODS if issubclass(config_class(name), DenoiseSettings)]
    if method not in known:
        raise ConfigError(f"--adapter: no adapter {method!r}; known: {', '.join(known)}")
    changes: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--adapter: {text!r}: {part!r} is not SETTING=VALUE; write for example lora:r=1,alpha=1")
        changes[name if "." in name else f"method.{name}"] = value
    return Spec(text, method, changes)


def configure(spec: Spec, model: str, subject: Path, prompt: str, steps: int, seed: int) -> RunConfig[Any]:
    """Return the run of an adapter on a subject's folder. Raises `ConfigError` for settings it does not have."""
    values: dict[str, Any] = {
        "model": model,
        "data": {"images": str(subject / "train"), "prompt": prompt, "validation": str(subject / "held-out")},
        "method": {},
        "optim": {"steps": steps},
        "watch": {"checkpoint_every": 0, "evaluate_every": steps, "preview_every": 0},
        "seed": seed,
    }
    for name, value in spec.changes.items():
        if name in SHARED:
            raise ConfigError(f"--adapter: {spec.label!r}: {name} must be the same for all; leave it to compare")
        place = values
        *sections, last = name.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    try:
        return run_config_class(spec.method).model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, f"--adapter {spec.label}")) from error


def compare(
    specs: Sequence[Spec],
    subjects: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 500,
    places: int = 4,
    count: int = 2,
    sampling_steps: int = 20,
    model: str = "toys",
    out: Path = Path("runs"),
) -> Path:
    """Train, draw and measure; `go_on` does what is left when this ends early.

    Args:
        specs: The adapters.
        subjects: Folders of assets/subjects.
        seeds: Of training and drawing; every adapter gets each.
        steps: Training steps, the same for all.
        places: In how many places each subject is drawn.
        count: Images for each place.
        sampling_steps: Of every image.
        model: Base model. The probe reads pictures of the toy world.
        out: Folder in which the comparison's own folder is made.

    Returns:
        That folder, with comparison.json, comparison.txt, comparison.png, the runs and the images.

    Raises:
        LrdiffError: An adapter, a subject or a setting cannot be used; all are checked before the first is trained.
    """
    if len(set(specs_labels := [spec.label for spec in specs])) < len(specs):
        raise ConfigError(f"--adapter: {specs_labels} names one of them twice")
    if not 1 <= places <= len(PLACES):
        raise ConfigError(f"--places: there are {len(PLACES)} places, so 1 to {len(PLACES)}, not {places}")
    _plan(specs, subjects, seeds, model, steps)
    folder = default_path(writable(out), "compare", "-".join(subjects)[:40])
    folder.mkdir(parents=True)
    record = {
        "adapters": specs_labels, "steps": steps, "seeds": list(seeds), "subjects": list(subjects), "model": model,
        "probe": PROBE, "places": places, "count": count, "sampling_steps": sampling_steps,
        "images_per_run": places * count, "rows": [],
    }  # fmt: skip
    write_json(folder / RECORD, record)
    return go_on(folder)


def go_on(folder: Path) -> Path:
    """Do what is left of a comparison: runs that were measured stay, one that was stopped goes on where it was.

    Args:
        folder: The comparison's own.

    Returns:
        The folder.

    Raises:
        LrdiffError: There is no comparison, or a run cannot go on.
    """
    record = _record(folder)
    specs, model, count = [read_spec(label) for label in record["adapters"]], record["model"], record["count"]
    places, rows = PLACES[: record["places"]], [Row(**row) for row in record["rows"]]
    measured = {(row.adapter, row.subject, row.seed) for row in rows}
    for spec, source, prompt, seed, config in _plan(specs, record["subjects"], record["seeds"], model, record["steps"]):
        if (spec.label, source.name, seed) in measured:
            continue
        name = f"{spec.label}-{source.name}-{seed}".replace(":", "-").replace("=", "").replace(",", "-")
        run = _trained(folder / "runs" / name, spec, config)
        images = _draw(run, model, prompt, seed, places, count, record["sampling_steps"], folder / "images" / name)
        rows.append(_measure(spec, source, seed, run, images, places, count))
        # After every run: what was measured in hours outlives a run that fails.
        _write(folder, rows, {**record, "rows": [asdict(row) for row in rows]})
    return folder


def _plan(
    specs: Sequence[Spec], subjects: Sequence[str], seeds: Sequence[int], model: str, steps: int
) -> list[tuple[Spec, Path, str, int, RunConfig[Any]]]:
    """Return every run with its subject, prompt and seed. Raises `LrdiffError` for what cannot be used."""
    plan = []
    for subject in subjects:
        source = find_subject(subject)
        prompt = f"a photo of sks {json.loads((source / 'subject.json').read_text())['noun']}"
        plan += [
            (spec, source, prompt, seed, configure(spec, model, source, prompt, steps, seed))
            for spec in specs
            for seed in seeds
        ]
    return plan


def _trained(path: Path, spec: Spec, config: RunConfig[Any]) -> RunDir:
    """Return a finished run. One that was killed before its first checkpoint is left alone and begun again beside."""
    while path.exists():
        run = open_run(path)
        if run.read()["state"] == "finished":
            return run
        if run.checkpoint_steps():
            return _finished(run, resume=True)
        path = path.with_name(f"{path.name}-again")
    return _finished(create(path, spec.method, config.model_dump(mode="json")), resume=False)


def _finished(run: RunDir, *, resume: bool) -> RunDir:
    if execute(run, resume=resume) != "finished":
        raise DataError(f"{run.path}: was stopped; lrdiff compare --resume {run.path.parents[1]} goes on from there")
    return run


def _record(folder: Path) -> dict[str, Any]:
    """Return what a comparison wrote down about itself."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
        missing = {"adapters", "subjects", "seeds", "steps", "model", "places", "count", "rows"} - set(record)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no record of a comparison ({error}); give the folder of one") from error
    if missing:
        raise DataError(f"{path}: has no {', '.join(sorted(missing))}; it was written by an older lrdiff: compare anew")
    return record


def rows_of(folder: Path) -> list[Row]:
    """Return what a comparison measured."""
    return [Row(**row) for row in json.loads((folder / RECORD).read_text())["rows"]]


def _write(folder: Path, rows: Sequence[Row], record: dict[str, Any]) -> None:
    """Write record, table and plot of the runs so far."""
    write_json(folder / RECORD, record)
    write_bytes(folder / "comparison.txt", table(rows).encode())
    write_bytes(folder / "comparison.png", plot(rows))


def _draw(
    run: RunDir, model: str, prompt: str, seed: int, places: Sequence[str], count: int, steps: int, out: Path
) -> Tensor:
    """Draw the subject in every place, `count` images each, and return them in that order."""
    config = GenerateConfig(
        model=model,
        adapter=(str(run.path),),
        prompt=tuple(f"{prompt} {PLACE_PHRASES[place][0]}" for place in places),
        seed=seed,
        count=count,
        steps=steps,
        out=out,
    )
    return _pictures(generate(config))


def _measure(
    spec: Spec, source: Path, seed: int, run: RunDir, images: Tensor, places: Sequence[str], count: int
) -> Row:
    record = run.read()
    held_out = _pictures(sorted((source / "held-out").glob("*.png")))
    probe = load_probe(PROBE)
    times = [row["seconds_per_step"] for row in run.metrics() if "seconds_per_step" in row]
    losses = [row["loss_validation"] for row in run.metrics() if "loss_validation" in row]
    asked = torch.tensor([PLACES.index(place) for place in places]).repeat_interleave(count)
    with torch.no_grad():
        likeness = float((probe.identity(images) @ probe.identity(held_out).T).mean())
        read = probe.attributes(images)["place"].argmax(1)
    return Row(
        adapter=spec.label,
        subject=source.name,
        seed=seed,
        parameters=int(record["parameters"]),
        file_bytes=run.artifact_path.stat().st_size,
        seconds_per_step=statistics.median(times),
        subject_fidelity=likeness,
        prompt_fidelity=float((read == asked).float().mean()),
        diversity=diversity(probe, images),
        held_out_loss=losses[-1],
    )


@torch.no_grad()
def diversity(probe: Probe, images: Tensor) -> float:
    """Return the mean cosine distance of the probe's features over all pairs of images, 0 for one image."""
    unit = functional.normalize(probe.features(images), dim=-1)
    count = len(unit)
    if count < 2:
        return 0.0
    cosines = unit @ unit.T
    return 1.0 - float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def _pictures(paths: Sequence[Path]) -> Tensor:
    return torch.stack([to_tensor(crop_to(read_image(path), SIDE, SIDE)) for path in paths])


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one entry per adapter: means over subjects and seeds, with the spread of the subject fidelity."""
    found = []
    for adapter in dict.fromkeys(row.adapter for row in rows):
        own = [asdict(row) for row in rows if row.adapter == adapter]
        numbers = [key for key, value in own[0].items() if isinstance(value, int | float) and key != "seed"]
        means = {key: statistics.fmean(row[key] for row in own) for key in numbers}
        fidelity = [row["subject_fidelity"] for row in own]
        spread = statistics.stdev(fidelity) if len(fidelity) > 1 else 0.0
        found.append({"adapter": adapter, **means, "runs": len(own), "spread": spread})
    return sorted(found, key=lambda row: -row["subject_fidelity"])


def table(rows: Sequence[Row]) -> str:
    """Return the comparison as text, best subject fidelity first."""
    entries = summary(rows)
    width = max(12, *(len(entry["adapter"]) for entry in entries))
    lines = [
        f"{'adapter':<{width}} {'parameters':>10} {'file kB':>8} {'s/step':>7} {'subject':>8} {'+-':>6} "
        f"{'prompt':>7} {'diversity':>9} {'loss':>7} {'runs':>5}"
    ]
    for e in entries:
        cost = f"{e['parameters']:>10,.0f} {e['file_bytes'] / 1e3:>8.1f} {e['seconds_per_step']:>7.3f}"
        found = f"{e['subject_fidelity']:>8.3f} {e['spread']:>6.3f} {e['prompt_fidelity']:>7.3f} {e['diversity']:>9.3f}"
        lines.append(f"{e['adapter']:<{width}} {cost} {found} {e['held_out_loss']:>7.4f} {e['runs']:>5}")
    return "\n".join(lines) + "\n" + LEGEND


def plot(rows: Sequence[Row]) -> bytes:
    """Return a PNG: parameters against subject fidelity on the left, against prompt fidelity on the right."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    sides = figure.subplots(1, 2)
    for axes, key, name in zip(sides, ("subject_fidelity", "prompt_fidelity"), ("subject", "prompt"), strict=True):
        for entry in summary(rows):
            spread = entry["spread"] if name == "subject" else None
            axes.errorbar(entry["parameters"], entry[key], yerr=spread, fmt="o", capsize=3, label=entry["adapter"])
        axes.set(xscale="log", xlabel="trained parameters", ylabel=f"{name} fidelity")
        axes.margins(0.25)
        if name == "prompt":  # a share: nothing is above 1
            axes.set_ylim(min(0.9, axes.get_ylim()[0]), 1.02)
        axes.grid(alpha=0.3)
    # Beside the points they would lie on each other: adapters of one size learn about the same.
    figure.legend(*sides[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
