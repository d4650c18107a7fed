"""Several processes: gradients stay in step, and two processes are one with twice the micro-batches."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.line import Line, LineSettings, record_metrics, train
from trainers.rundir import RunDir, create

WORKER = """
import json, sys
import torch
from tests.trainers.line import Line, LineSettings, record_metrics, train
from trainers.__main__ import leave
torch.set_num_threads(1)
rows = []
method = Line(LineSettings(noise=0.1), batch_size=2)
state = train(method, (record_metrics(rows),), accumulate=int(sys.argv[1]), clip=0.5)
slope, offset = method.slope.tolist(), float(method.offset.detach())
torch.distributed.destroy_process_group()
print(json.dumps({"slope": slope, "offset": offset, "rows": rows, "seen": method.seen}))
leave(0)
"""


def free_port() -> int:
    """Return a port below those that systems hand out by themselves, which a server beside this test could be given."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as place, contextlib.suppress(OSError):
            place.bind(("127.0.0.1", port))
            return port


RUN_WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from tests.trainers import line
from trainers.__main__ import leave, main
from trainers.registry import METHODS
METHODS["line"] = line.RUN_LINE
folder, how, *flags = sys.argv[1:]
steps = []
def stepped(self, step):
    steps.append(step)
    if step == 3 and self.engine.rank == 1:
        if how == "file":
            (Path(folder) / "STOP").touch()
        if how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
prepare = line.RunLine.__init__
def init(self, *arguments):
    prepare(self, *arguments)
    self.bad_loss_at = 7 if how == "nan" else -1  # the second process' batch of the fourth step
line.RunLine.__init__, line.RunLine.stepped = init, stepped
code = main([folder, *flags])
print(json.dumps({"code": code, "steps": steps}))
leave(code)
"""


def in_two_processes(code: str, *arguments: object) -> list[dict]:
    """Run a program in two processes that know of each other, and return what each of them printed last."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        found = [worker.communicate(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    said = "\n".join(errors for _, errors in found)
    answers = [json.loads(out.splitlines()[-1]) | {"said": errors} for out, errors in found]
    assert [worker.returncode for worker in workers] == [answer.get("code", 0) for answer in answers], said
    return answers


@pytest.fixture
def line_run(tmp_path: Path, tiny_model: Path, pictures: Path) -> RunDir:
    """Return a run of `Line` in state queued; model and pictures are only there to be fingerprinted."""
    watch = {"log_every": 1, "checkpoint_every": 0, "evaluate_every": 2, "preview_every": 0}
    config = {
        "model": str(tiny_model),
        "data": {"images": str(pictures)},
        "method": {},
        "optim": {"steps": 6, "lr": 0.05, "warmup": 0},
        "precision": {"device": "cpu"},
        "watch": watch,
    }
    return create(tmp_path / "run", "line", config)


@pytest.mark.parametrize("how", ["file", "signal"])
def test_a_wish_to_stop_ends_all_processes_after_the_same_step(line_run: RunDir, how: str) -> None:
    first, second = in_two_processes(RUN_WORKER, line_run.path, how)
    assert (first["code"], second["code"]) == (0, 0), (first, second)
    assert first["steps"] == second["steps"] == [1, 2, 3]
    record = line_run.read()
    assert (record["state"], record["step"]) == ("stopped", 3)
    assert record["outcome"] == ("the file STOP appeared" if how == "file" else "SIGTERM received")
    assert record["device"] == "CPU, 1 threads, 2 processes, float32"
    assert line_run.checkpoint_steps() == [3]
    assert [row["step"] for row in line_run.metrics() if "loss" in row] == [1, 2, 3], "each step is logged once"
    assert line_run.log_path.read_text().count("stopped after") == 1

    first, second = in_two_processes(RUN_WORKER, line_run.path, "go on", "--resume")
    assert first["steps"] == second["steps"] == [4, 5, 6]
    assert line_run.read()["state"] == "finished"
    assert line_run.log_path.read_text().count("resumed at step 3") == 1
    assert line_run.artifact_path.is_file()


def test_a_bad_loss_in_one_process_ends_all_of_them(line_run: RunDir) -> None:
    first, second = in_two_processes(RUN_WORKER, line_run.path, "nan")
    assert (first["code"], second["code"]) == (2, 2)
    assert first["steps"] == second["steps"] == [1, 2, 3]
    assert "loss of step 4 is nan" in second["said"]
    record = line_run.read()
    assert record["state"] == "failed"
    assert "the loss of step 4 is not finite in another process; the weights of step 3 are kept" in record["outcome"]


def test_two_processes_equal_one_with_twice_the_micro_batches() -> None:
    first, second = in_two_processes(WORKER, 2)
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


def test_accelerate_launch_gives_the_gradients_of_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    """On a CPU, accelerate starts several processes by the same way as for GPUs; its --cpu starts one, or needs MPI."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    flags = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *words]
    done = subprocess.run(
        [*launch, "--main_process_port", str(free_port()), str(script), "1"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("}{", "}\n{").splitlines()  # both may write before either ends its line
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(found) == 2
    assert found[0]["rows"] == found[1]["rows"]
    rows: list[dict[str, float]] = []
    alone = Line(LineSettings(noise=0.1), batch_size=2)
    train(alone, (record_metrics(rows),), accumulate=2, clip=0.5)
    assert sorted(found[0]["seen"] + found[1]["seen"]) == alone.seen, "together the batches of the one"
    for both, one in zip(found[0]["rows"], rows, strict=True):
        assert both["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)
