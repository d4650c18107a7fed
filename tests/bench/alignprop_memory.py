"""Peak memory and time of one reward gradient against k, with and without recomputing.

python -m tests.bench.alignprop_memory

The peak is the process' largest resident memory during a forward and a backward pass, less what it held before, as
Linux reports it (VmHWM, set back through /proc/self/clear_refs). It counts also what the allocator does not give back,
so what autograd keeps for the backward pass is added up beside it.
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from pathlib import Path

import torch

from lrdiff.rng import stream
from tests.bench.result import write
from trainers.alignprop.config import AlignPropRun
from trainers.alignprop.method import AlignProp
from trainers.engine import Engine

STEPS = 50
KS = (1, 5, 10, 25, 50)
MIB = 1024  # of /proc's kB


def main(arguments: list[str]) -> int:
    """Measure, and write `alignprop_memory.json`."""
    torch.set_num_threads(1)
    gradient(1, True)  # what is allocated once and stays
    rows: list[list[float]] = []
    for k in KS:
        (peak, seconds), (whole, faster) = gradient(k, True), gradient(k, False)
        rows.append([k, kept(k, True), kept(k, False), peak, whole, seconds, faster])
        report(rows)
    return 0


def report(rows: list[list[float]]) -> None:
    """Write what has been measured so far."""
    absent = ", ".join(str(k) for k in KS if k not in [row[0] for row in rows])
    write(
        "alignprop_memory", "python -m tests.bench.alignprop_memory",
        [
            "k of 50 steps", "kept for backward, MiB, with recompute", "without",
            "peak, MiB, with recompute", "without", "CPU s, with recompute", "without",
        ],
        rows,
        "toys at 128 px, one picture, guidance 3, last-k, compressibility, fp32, one thread. The peak is that of the "
        "process, with what the allocator keeps for itself."
        + (f" Not measured: k = {absent}." if absent else ""),
    )  # fmt: skip


def gradient(k: int, recompute: bool) -> tuple[float, float]:
    """Return peak MiB and processor seconds of one gradient."""
    method = trainer(k, recompute)
    batch = method.batch(0, stream(0, "batch"))
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.process_time()
    loss, _ = method(batch, stream(0, "forward"))
    loss.backward()
    return (resident("VmHWM") - before) / MIB, time.process_time() - begin


def kept(k: int, recompute: bool) -> float:
    """Return the MiB that autograd keeps from a forward pass for the backward pass, weights not counted."""
    method = trainer(k, recompute)
    sizes: dict[int, int] = {}

    def count(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss, _ = method(method.batch(0, stream(0, "batch")), stream(0, "forward"))
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    found = sum(size for place, size in sizes.items() if place not in weights) / MIB**2
    del loss
    return found


def trainer(k: int, recompute: bool) -> AlignProp:
    """Return the method at `k` of `STEPS` steps with gradient."""
    config = AlignPropRun.model_validate({
        "method": {"mode": "last-k", "k": k, "sampling_steps": STEPS, "recompute": recompute},
        "data": {"batch_size": 1},
        "precision": {"device": "cpu"},
    })  # fmt: skip
    method = AlignProp(config, "alignprop", Engine(config.precision))
    method.train()
    return method


def resident(name: str) -> int:
    """Return a line of /proc/self/status in kB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
