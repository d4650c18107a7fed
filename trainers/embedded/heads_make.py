"""Makes the shipped generator `heads`, from nothing but a seed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrdiff.rng import derive, stream
from lrdiff.triplane.config import TriplaneConfig
from lrdiff.triplane.inversion import mean_latent
from lrdiff.triplane.store import save
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded.heads import HEADS, HeadsConfig, TrainHeads
from trainers.engine import Engine
from trainers.loop import State, fit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadsBudget:
    """How much goes into the generator.

    Attributes:
        name: For the record.
        method: What is rendered and compared.
        optim: Steps and learning rate.
        precision: Device and number format.
        generator: Sizes.
    """

    name: str
    method: HeadsConfig
    optim: OptimConfig
    precision: PrecisionConfig
    generator: TriplaneConfig = HEADS


def _optim(steps: int) -> OptimConfig:
    return OptimConfig(steps=steps, lr=4e-3, warmup=min(200, steps // 4), beta1=0.0, beta2=0.99, clip=10.0)


GPU = HeadsBudget(
    "gpu", HeadsConfig(pool=60_000), _optim(25_000), PrecisionConfig(device="cuda", dtype="fp32")
)  # fmt: skip
"""800,000 views of 60,000 heads."""
CPU = HeadsBudget("cpu", HeadsConfig(pool=3_000, batch=4), _optim(12_000), PrecisionConfig(device="cpu"))
"""48,000 views of 3,000 heads: a night on two cores."""


def make(folder: Path, budget: HeadsBudget, seed: int = 0) -> dict[str, float]:
    """Train the generator and write its folder.

    Args:
        folder: New folder.
        budget: How much to spend.
        seed: Of weights and batches.

    Returns:
        What was measured on unseen heads.
    """
    began = time.monotonic()
    torch.manual_seed(derive(seed, "init"))
    engine = Engine(budget.precision)
    method = TrainHeads(budget.method, budget.generator).to(engine.device)

    def report(state: State) -> None:
        if state.step % 200 == 0 and state.metrics:
            log.info("step %d: loss %.4f, %.2f dB", state.step, state.metrics["loss"], state.metrics["psnr"])

    fit(method, budget.optim, engine=engine, seed=seed, hooks=[report])
    mean, _ = mean_latent(method.generator, 10_000, seed)
    method.generator.backbone.mapping.get_buffer("w_avg").copy_(mean)
    found = method.evaluate(stream(seed, "evaluate"))
    origin: dict[str, Any] = {
        "made": "regression on procedural heads with known latents",
        "budget": budget.name,
        "device": engine.describe(),
        "seed": seed,
        "steps": budget.optim.steps,
        "seconds": round(time.monotonic() - began),
        "measured": found,
    }
    save(method.generator, folder, origin)
    return found
