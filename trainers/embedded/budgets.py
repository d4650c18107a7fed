"""How much goes into the shipped models: two sets of figures, for a CPU and for a GPU. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainers.config import OptimConfig, PrecisionConfig


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        method: Settings of the method, besides its folders.
        optim: Steps, learning rate and so on.
        every: Steps between checkpoints.
        precision: Device and number format, where they are not those of the budget.
    """

    method: Mapping[str, Any]
    optim: OptimConfig
    every: int = 100
    precision: PrecisionConfig | None = None


@dataclass(frozen=True)
class Budget:
    """How much goes into the models.

    Attributes:
        name: For the record.
        scenes: Rendered scenes.
        subjects: Rendered individuals, five pictures each.
        vae: The autoencoder of `toys`.
        decoder: Its decoder alone, once the latents are fixed.
        unet: The denoiser and text encoder of `toys`.
        probes: By name.
        extractor: The reader of watermarks.
        dit: The transformer and text encoder of `toys-dit`.
        dit_scenes: How many scenes it learns from at each side in latents; 0 takes all.
        heads: The generator of 3D heads, in stages of which each goes on from the last.
        mark: Settings of the example mark's run, over its defaults.
        people: Individuals that the identity networks of heads learn from.
        head_probes: Identity networks of heads, by name.
        unmarked: Pictures of each kind that it is whitened with, and as many others that it is calibrated on.
        precision: Device and number format.
        shard: Pictures per file.
    """

    name: str
    scenes: int
    subjects: int
    vae: Training
    decoder: Training
    unet: Training
    probes: Mapping[str, Training]
    extractor: Training
    dit: Training
    dit_scenes: Mapping[int, int]
    heads: Sequence[Training]
    people: int
    head_probes: Mapping[str, Training]
    precision: PrecisionConfig
    mark: Mapping[str, Any] = field(default_factory=dict)
    unmarked: int = 1024
    shard: int = 512


def _probes(steps: int, scenes: int, subjects: int) -> dict[str, Training]:
    """Two probes of different width, so that they do not make the same mistakes."""
    optim = OptimConfig(steps=steps, lr=3e-3, warmup=50, weight_decay=5e-3)
    sizes = {"scenes_per_batch": scenes, "subjects_per_batch": subjects}
    widths = {"probe-a": (24, 48, 96, 160), "probe-b": (32, 48, 112, 176)}
    return {name: Training({"widths": w, **sizes}, optim, every=200) for name, w in widths.items()}


def _head_probes(steps: int) -> dict[str, Training]:
    """Two identity networks of different width."""
    optim = OptimConfig(steps=steps, lr=3e-3, warmup=20, weight_decay=5e-3)
    widths = {"heads-probe-a": (16, 32, 64, 96), "heads-probe-b": (20, 40, 56, 112)}
    return {name: Training({"widths": w}, optim, every=200) for name, w in widths.items()}


def _dit(
    small: tuple[int, int],
    middle: tuple[int, int],
    large: tuple[int, int],
    *,
    lr: float,
    every: int = 100,
    precision: PrecisionConfig | None = None,
) -> Training:
    """Three stages, each given as steps and samples per step, at 8, 16 and 32 latents on a side."""
    stages = tuple(
        {"side": side, "steps": steps, "batch_size": size}
        for side, (steps, size) in zip((8, 16, 32), (small, middle, large), strict=True)
    )
    steps = sum(stage["steps"] for stage in stages)
    # Linear, so that the last and largest stage still learns.
    optim = OptimConfig(steps=steps, lr=lr, warmup=50, weight_decay=1e-2, schedule="linear")
    return Training({"stages": stages}, optim, every, precision)


def _heads(
    steps: tuple[int, ...], sizes: Mapping[str, Any], every: int, precision: PrecisionConfig | None = None
) -> tuple[Training, ...]:
    """Half of the rays aim at the face, a third of those at the eyes; then super-resolution learns beside the rest.

    Every further stage is the second once more, at the full learning rate again; the last is slower, and aims at
    outlines. Biases take AdamW's steps at this rate, weights orthogonal ones at twelve times it.
    """
    given = {"warmup": 15, "beta2": 0.99, "clip": 10.0, "weight_decay": 0.0}
    first = OptimConfig(steps=steps[0], lr=5e-3, schedule="constant", **given)
    sizes = {"face": 0.5, "eyes": 0.33, **sizes}
    further = {"superres": (24, 16), "batch": 8, "rays": 384, "patch": 20, **sizes}
    last = {**further, "rays": 512, "patch": 16, "face": 0.4, "outline": 0.35}
    return (
        Training(sizes, first, every, precision),
        *(Training(further, OptimConfig(steps=count, lr=4e-3, **given), every, precision) for count in steps[1:-1]),
        Training(last, OptimConfig(steps=steps[-1], lr=3e-3, **given), every, precision),
    )


CPU = Budget(
    name="cpu",
    scenes=14848,
    subjects=600,
    vae=Training({"batch_size": 16}, OptimConfig(steps=2000, lr=1e-3, warmup=30, weight_decay=1e-3)),
    decoder=Training(
        {"batch_size": 8, "crop": 96, "scene_share": 0.75, "half_scale": 0.0},
        OptimConfig(steps=2500, lr=1e-3, warmup=30, weight_decay=1e-3),
        precision=PrecisionConfig(device="cpu", dtype="bf16"),
    ),
    unet=Training(
        {"channels": (128, 160, 208), "small_steps": 800, "batch_size": 64},
        OptimConfig(steps=6000, lr=1e-3, warmup=60, weight_decay=1e-2, schedule="linear"),
        precision=PrecisionConfig(device="cpu", dtype="bf16"),
    ),
    probes=_probes(4000, 48, 8),
    extractor=Training(
        {"psnr": (14.0, 32.0), "keyed_share": 0.75, "ramp": 10000, "settle": 40000},
        OptimConfig(steps=50000, lr=2e-3, warmup=50, weight_decay=1e-3, schedule="linear"),
        precision=PrecisionConfig(device="cpu", dtype="bf16"),
    ),
    dit=_dit((1200, 64), (400, 32), (160, 8), lr=2e-3, every=50, precision=PrecisionConfig(device="cpu", dtype="bf16")),
    dit_scenes={8: 0, 16: 8192, 32: 1024},
    heads=_heads(
        (900, 1400, 3000, 5000),
        {"channels": (192, 160, 128, 96, 48)},
        every=150,
        precision=PrecisionConfig(device="cpu", dtype="bf16"),
    ),
    people=500,
    head_probes=_head_probes(300),
    precision=PrecisionConfig(device="cpu"),
)
"""About twelve hours on two cores; the shipped models were made with about these figures, see the manifest for what
differed."""

GPU = Budget(
    name="gpu",
    scenes=61440,
    subjects=4000,
    vae=Training({"batch_size": 32}, OptimConfig(steps=4000, lr=1e-3, warmup=100, weight_decay=1e-3), every=500),
    decoder=Training(
        {"batch_size": 16, "crop": 96, "scene_share": 0.75, "half_scale": 0.0},
        OptimConfig(steps=6000, lr=1e-3, warmup=100, weight_decay=1e-3),
        every=500,
    ),
    # As many weights as the CPU's, more of them where latents have their full size: patterns are made there.
    unet=Training(
        {"channels": (128, 160, 208), "batch_size": 128, "average": 0.9995},
        OptimConfig(steps=15000, lr=8e-4, warmup=300, weight_decay=1e-2),
        every=1000,
    ),
    probes=_probes(6000, 128, 64),
    extractor=Training(
        {"batch_size": 64, "sides": (64, 96, 128), "ramp": 8000, "settle": 16000},
        OptimConfig(steps=20000, lr=3e-3, warmup=100, weight_decay=1e-3, schedule="linear"),
        every=1000,
    ),
    dit=_dit((20000, 256), (10000, 128), (10000, 64), lr=1e-3, every=1000),
    dit_scenes={8: 0, 16: 0, 32: 0},
    heads=_heads(
        (5000, 10000, 10000), {"w": 128, "channels": (256, 256, 192, 128, 64), "features": 24, "batch": 32}, every=1000
    ),
    people=10000,
    head_probes=_head_probes(4000),
    precision=PrecisionConfig(device="cuda", dtype="bf16"),
)
"""More data and longer training of the same networks: wider ones would not fit what a repository should hold, nor two
seconds per image on a CPU. This preset has not been run."""

BUDGETS = {budget.name: budget for budget in (CPU, GPU)}
