"""Several processes: gradients stay in step, and two processes are one with twice the micro-batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.line import Line, LineSettings, record_metrics, train

WORKER = """
import json, sys
import torch
from tests.trainers.line import Line, LineSettings, record_metrics, train
torch.set_num_threads(1)
rows = []
method = Line(LineSettings(noise=0.1), batch_size=2)
state = train(method, (record_metrics(rows),), accumulate=int(sys.argv[1]), clip=0.5)
slope, offset = method.slope.tolist(), float(method.offset.detach())
# An orderly end: a group that is torn down while the interpreter exits may abort the process.
torch.distributed.destroy_process_group()
print(json.dumps({"slope": slope, "offset": offset, "rows": rows, "seen": method.seen}))
"""


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def in_two_processes(accumulate: int) -> list[dict]:
    """Train `Line` in two processes and return what each of them ended with."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(accumulate)],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors for _, errors in found)
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


def test_two_processes_equal_one_with_twice_the_micro_batches() -> None:
    first, second = in_two_processes(accumulate=2)
    assert (first["slope"], first["offset"]) == (second["slope"], second["offset"]), "equal on both, bit by bit"
    assert first["rows"] == second["rows"]
    assert sorted(first["seen"] + second["seen"]) == list(range(24)), "each batch is seen by one process"
    rows: list[dict[str, float]] = []
    alone = Line(LineSettings(noise=0.1), batch_size=2)
    train(alone, (record_metrics(rows),), accumulate=4, clip=0.5)
    assert first["slope"] == pytest.approx(alone.slope.tolist(), rel=1e-4)
    assert first["offset"] == pytest.approx(float(alone.offset.detach()), rel=1e-4)
    for both, one in zip(first["rows"], rows, strict=True):
        assert both == pytest.approx(one, rel=1e-4)
