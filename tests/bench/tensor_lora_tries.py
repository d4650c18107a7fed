"""`python -m tests.bench.tensor_lora_tries`: what decides how fast tensor-lora learns, one row for each try.

Ranks, transform and residual alone and together, the residual's form and scale, the rate of the transform, the start,
and which layers: short runs on one subject with one seed, the same batches and noise for all. Beside the losses stands
how far each part has moved the weights, the mean over layers of ||W0 (T - I)|| / ||W0|| and ||s D|| / ||W0||.

Written after every try; tries that the result file holds are not made again, so that it can be interrupted.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from app.adapter_comparison import configure, read_spec
from lrdiff.assets import SUBJECTS
from lrdiff.rng import stream
from tests.bench.result import RESULTS, read, write
from trainers.denoise.method import ADAPTER, Denoise
from trainers.engine import Engine
from trainers.loop import fit
from trainers.run import build

NAME = "tensor_lora_tries"
TRIES = (
    "lora:r=1,alpha=1",
    "lora:r=4",
    "lora:r=4,optim.lr=4e-3",
    "tensor-lora:transform_rank=2,residual=ring,r=2,alpha=1",
    "tensor-lora:transform_rank=0,residual=ring,r=4,alpha=1",
    "tensor-lora:transform_rank=2,residual=none",
    "tensor-lora:alpha=1",
    "tensor-lora",
    "tensor-lora:transform_lr=3",
    "tensor-lora:transform_rank=0,residual=ring,r=4,alpha=8",
    "tensor-lora:residual=ring,r=3,alpha=12",
    "tensor-lora:residual=ring,r=3,alpha=12,transform_lr=0.3",
    "tensor-lora:transform_rank=2,residual=none,transform_lr=3",
    "lora:r=4,optim.lr=8e-3",
    "lora:r=1,alpha=1,optim.lr=8e-3",
    "tensor-lora:transform_rank=2,residual=ring,r=6,alpha=1",
    "tensor-lora:transform_rank=2,residual=none,init=paper",
    "tensor-lora:residual=ring,r=2,alpha=12,targets=attention+ff",
)
"""What is compared, the most telling first."""


def attempt(text: str, subject: str, steps: int) -> list[Any]:
    """Train one adapter for a few steps; return parameters, movements of both parts, and the two fixed losses."""
    spec = read_spec(text)
    config = configure(spec, "toys", SUBJECTS / subject, "a photo of sks", steps, 0)
    engine = Engine(config.precision)
    method = build(spec.method, config, engine)
    assert isinstance(method, Denoise)
    fit(method, config.optim, engine=engine, seed=0)
    method.eval()
    with torch.no_grad():
        losses = method.evaluate(stream(0, "evaluate"))
    return [method.report.parameters, *movements(method), losses["loss_fixed"], losses["loss_validation"]]


@torch.no_grad()
def movements(method: Denoise) -> tuple[float, float]:
    """Return how far transform and residual moved the weights, relative to their norms, on average over the layers."""
    found: list[tuple[float, float]] = []
    for name in method.report.targets:
        layer: Any = method.denoiser.get_submodule(name)
        norm, delta = layer.base_layer.weight.norm(), layer.get_delta_weight(ADAPTER)
        # Any other adapter is a residual as a whole.
        factors = layer.residual_factors(ADAPTER) if hasattr(layer, "residual_factors") else ()
        residual = delta if factors == () else delta * 0 if factors is None else factors[0].t() @ factors[1]
        found.append((float((delta - residual).norm() / norm), float(residual.norm() / norm)))
    return sum(turn for turn, _ in found) / len(found), sum(rest for _, rest in found) / len(found)


def main(arguments: list[str]) -> None:
    """Make every try, print it, and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default="horned-mug")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    asked = {"subject": options.subject, "steps": options.steps}
    path = RESULTS / f"{NAME}.json"
    known = read(path)["details"] if path.is_file() else {}
    made: dict[str, list[Any]] = known["made"] if known.get("asked") == asked else {}
    for text in TRIES:
        if text not in made:
            made[text] = attempt(text, options.subject, options.steps)
            print(text, *made[text], sep="  ", flush=True)
        rows = [[name, *made[name][:3], *(f"{loss:.4f}" for loss in made[name][3:])] for name in TRIES if name in made]
        write(
            NAME,
            "python -m tests.bench.tensor_lora_tries",
            ["adapter", "parameters", "T moved", "D moved", "loss, trained images", "loss, held-out images"],
            rows,
            note=f"{options.steps} steps on {options.subject} from one seed; optim.lr is 0.002 unless said.",
            details={"asked": asked, "made": made},
        )


if __name__ == "__main__":
    main(sys.argv[1:])
