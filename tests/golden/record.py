"""Golden trajectories: ten steps of every method on the tiny base model.

    python -m tests.golden.record [METHOD ...]

writes tests/golden/METHOD.json. Recording anew means that trained results change for users: the commit says why.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lrdiff.artifact import versions
from lrdiff.rng import stream
from tests.lrdiff.triplane.tiny import build_tiny_heads
from tests.tiny import build_tiny_mark, build_tiny_model, mark_settings
from tests.trainers.conftest import save_pictures
from tests.trainers.line import record_metrics
from trainers.engine import Engine
from trainers.loop import fit
from trainers.registry import METHODS, run_config_class
from trainers.run import build
from trainers.watermark.method import Watermark

FOLDER = Path(__file__).resolve().parent
STEPS = 10


def trajectory(method: str, folder: Path) -> dict[str, Any]:
    """Train ten steps at seed 0 on the CPU.

    Args:
        method: Name of the method.
        folder: For the tiny model and the pictures.

    Returns:
        Metrics of every step, the fixed evaluation before and after, and the norm of every trained tensor.
    """
    model = folder / "tiny"
    if not model.exists():
        build_tiny_model(model)
    own: dict[str, dict[str, Any]] = {
        "tensor-lora": {"transform_rank": 2, "residual": "ring", "r": 6, "alpha": 1.0},
        "my3dgen": {"anchor_steps": 4, "symmetry": 0.5, "symmetry_form": "pixels"},
        "alignprop": {
            "sampling_steps": 3,
            "held_out_count": 2,
            "mode": "random-k",
            "k": 3,
            "penalty": 0.1,
            "guidance": 4.0,
        },
        "sla": {"topk": 0.25, "block_q": 16, "block_k": 16, "ramp": 5},
    }
    if method == "watermark":
        own[method] = mark_settings(build_tiny_mark(folder / "mark"))
    if method == "my3dgen":
        model = build_tiny_heads(folder / "heads")
    settings: dict[str, Any] = {
        "model": str(model),
        "data": {"images": str(save_pictures(folder / "images")), "batch_size": 2},
        "method": own.get(method, {}),
        "optim": {"steps": STEPS, "warmup": 2, "lr": 5e-3},
        "precision": {"device": "cpu"},
    }
    if "data.images" in run_config_class(method).unread:
        del settings["data"]["images"]
    config = run_config_class(method).model_validate(settings)
    engine = Engine(config.precision)
    trainer = build(method, config, engine)
    if isinstance(trainer, Watermark):
        # Kept in half precision, whose rounding would be all of the first image loss, and another on other processors.
        trainer.clean = trainer._decode(trainer.latents)
    rows: list[dict[str, float]] = []
    with torch.no_grad():
        before = trainer.evaluate(stream(0, "evaluate"))
    state = fit(trainer, config.optim, engine=engine, seed=0, hooks=[record_metrics(rows)])
    trainer.eval()
    with torch.no_grad():
        after = trainer.evaluate(stream(0, "evaluate"))
    artifact = trainer.artifact()
    assert artifact is not None
    assert state.step == STEPS
    norms = {name: float(tensor.norm()) for name, tensor in sorted(artifact.tensors.items())}
    return {"steps": rows, "before": before, "after": after, "norms": norms}


def record(method: str) -> Path:
    """Write the golden file of a method."""
    with tempfile.TemporaryDirectory() as folder:
        found = trajectory(method, Path(folder))
    environment = versions() | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    head = {"command": f"python -m tests.golden.record {method}", "environment": environment, "seed": 0}
    path = FOLDER / f"{method}.json"
    path.write_text(json.dumps(head | found, indent=1) + "\n")
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums of several threads are rounded otherwise
    for name in sys.argv[1:] or METHODS:
        sys.stdout.write(f"{record(name)}\n")
