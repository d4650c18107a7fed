"""kill -9 of servers, workers and trainers at random moments, with processes of their own.

Fifty rounds go over two workers on two devices, with trainers that keep the contract of a run directory without torch
and somebody who goes on with interrupted runs in a terminal at the same time.
The same with the true trainer takes minutes; `LRDIFF_KILL_ROUNDS=50` asks for it.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app import text_runs, watch
from app.device import Device
from app.jobs import TRAINER, Queue
from lrdiff.errors import RunError
from tests.app.conftest import SHORT_TRAINER, submit, wait_for
from trainers.rundir import ENDED, RunDir, TakenError, is_alive

ROUNDS = 50
STEPS = 25
TRUE_ROUNDS = int(os.environ.get("LRDIFF_KILL_ROUNDS", "0"))

SERVER = """
import sys, time
from pathlib import Path
from app.jobs import Queue
Queue(Path(sys.argv[1]), trainer=sys.argv[3:], interval=0.02, devices=sys.argv[2].split()).start()
time.sleep(3600)
"""


@dataclass
class Stage:
    """A folder of runs with servers that are killed and started again."""

    root: Path
    trainer: tuple[str, ...]
    devices: str = "0 1"
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    terminals: list[subprocess.Popen[bytes]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    kills: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Only looks and asks; the servers do the work.
        self.queue = Queue(self.root, trainer=self.trainer)
        self.root.mkdir()

    def serve(self) -> None:
        """Start one more server."""
        words = [sys.executable, "-c", SERVER, str(self.root), self.devices, *self.trainer]
        self.servers.append(subprocess.Popen(words))

    def train_in_a_terminal(self, names: set[str]) -> None:
        """Let somebody go on with an interrupted run by hand, while the queue may be about to do the same."""
        ended = [run for name in sorted(names) if (run := self.queue.find(name)).read()["state"] == "interrupted"]
        ready = [run for run in ended if run.checkpoint_steps()]
        if ready:
            run = self.rng.choice(ready)
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": f"of-terminal-{len(self.terminals)}"}
            self.terminals.append(subprocess.Popen([*self.trainer, str(run.path), "--resume"], env=environment))

    def kill(self) -> None:
        """Kill a server, a trainer or both, and start the server again."""
        what = self.rng.choice(("server", "trainer", "trainer", "both"))
        if what != "server":
            self._kill_a_trainer()
        if what != "trainer":
            server = self.servers.pop(self.rng.randrange(len(self.servers)))
            server.kill()
            server.wait()
            self.kills["server"] = self.kills.get("server", 0) + 1
            self.serve()

    def _kill_a_trainer(self) -> None:
        processes = [holder for device in ("0", "1", "") if (holder := self._holder(device)) and is_alive(holder)]
        processes += [r["process"] for _, r in self.queue.runs() if is_alive(r.get("process"))]
        if processes:
            os.kill(self.rng.choice(processes)["pid"], signal.SIGKILL)
            self.kills["trainer"] = self.kills.get("trainer", 0) + 1

    def _holder(self, device: str) -> dict[str, Any] | None:
        holder = Device(self.root, device).holder()
        return {"pid": holder["pid"], "started": holder["started"]} if holder and "pid" in holder else None

    def revive(self, names: set[str]) -> set[str]:
        """Put what was interrupted back into the queue; what never came to a checkpoint is repeated."""
        for name in sorted(names):
            if self.queue.find(name).read()["state"] not in ("interrupted", "failed"):
                continue
            problem = self.queue.why_not_resume(name)
            if not problem:
                # A terminal may be taking it in this moment, or have taken it since the look; the queue is then told.
                try:
                    self.queue.resume(name)
                except TakenError:
                    pass
                except RunError as error:
                    if not self.terminals or str(error) != text_runs.IS_RUNNING.format(name=name):
                        raise
            elif "no checkpoint" in problem:
                again = self.queue.repeat(name)
                names = names - {name} | {self.queue.name(again)}
                self.queue.delete(name)
        return names

    def check(self, names: set[str]) -> None:
        """Assert what must hold at every moment."""
        found = {self.queue.name(run): (run, record) for run, record in self.queue.runs()}
        assert self.queue.unreadable() == {}
        assert names == set(found), "no run is lost, none is there twice"
        assert list(self.root.glob("**/OVERLAP")) == [], "no run and no device was in two hands"
        for name, (run, record) in found.items():
            # One that was killed after its last step says finished until a worker has seen its exit code.
            if record["state"] == "finished" and run.read() == record:
                assert watch.look(self.queue, name).has_artifact, f"{name} says finished"
            if record["state"] in ENDED:
                assert not self._is_trained(run), f"{name} says {record['state']} and is being trained"

    def _is_trained(self, run: RunDir) -> bool:
        """Tell whether a trainer has the run, while its record goes on saying that it ended."""
        before = run.read()
        if not (run.path / ".witness").exists():
            return False
        handle = os.open(run.path / ".witness", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # It may have been taken up between the two looks, and then its record changes in a moment.
            time.sleep(0.2)
            return run.read() == before
        finally:
            os.close(handle)
        return False


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(*words: Any) -> Stage:
        stages.append(Stage(tmp_path / "runs", *words))
        return stages[-1]

    yield make
    for made in stages:
        for process in made.servers + made.terminals:
            process.kill()
            process.wait()
        for _, record in made.queue.runs():
            if is_alive(record.get("process")):
                os.kill(record["process"]["pid"], signal.SIGKILL)


def test_fifty_kills_lose_nothing_double_nothing_and_finish_nothing_falsely(stage: Callable[..., Stage]) -> None:
    made: Stage = stage(SHORT_TRAINER)
    queue = made.queue
    names = {queue.name(submit(queue, "steps", STEPS)) for _ in range(4)}
    made.serve()
    made.serve()
    wait_for(queue.is_attended)
    for _ in range(ROUNDS):
        time.sleep(made.rng.uniform(0.0, 0.35))
        made.kill()
        made.check(names)
        if made.rng.random() < 0.3:
            made.train_in_a_terminal(names)
        names = made.revive(names)
        if sum(record["state"] not in ENDED for _, record in queue.runs()) < 3:
            names |= {queue.name(submit(queue, "steps", STEPS))}
    wait_for(lambda: _all_finished(made, names), timeout=60)
    names = {queue.name(run) for run, _ in queue.runs()}
    made.check(names)
    for run, _ in queue.runs():
        # Resumed as often as it was killed, each step counts once.
        assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))
    assert made.kills["server"] >= ROUNDS // 4
    assert made.kills["trainer"] >= ROUNDS // 4


def _all_finished(made: Stage, names: set[str]) -> bool:
    names = {made.queue.name(run) for run, _ in made.queue.runs()}
    made.revive(names)
    return all(record["state"] == "finished" for _, record in made.queue.runs())


@pytest.mark.skipif(
    not TRUE_ROUNDS, reason="takes minutes; set LRDIFF_KILL_ROUNDS=50 to kill the true trainer as often"
)
@pytest.mark.timeout(3600)
def test_the_same_with_the_true_trainer(
    stage: Callable[..., Stage],
    settings: Callable[..., dict[str, Any]],
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made: Stage = stage(TRAINER, "")
    queue = made.queue
    config = settings(steps=60)
    config["watch"]["checkpoint_every"] = 5

    def add() -> str:
        return queue.name(queue.submit("tensor-lora", config, {path.name: path for path in photos}))

    names = {add()}
    made.serve()
    for _ in range(TRUE_ROUNDS):
        time.sleep(made.rng.uniform(0.0, 8.0))
        made.kill()
        made.check(names)
        names = made.revive(names)
        if all(record["state"] in ENDED for _, record in queue.runs()):
            names |= {add()}
    wait_for(lambda: _all_finished(made, names), timeout=600)
    for run, _ in queue.runs():
        steps = [line["step"] for line in run.metrics() if "seconds_per_step" in line]
        assert steps == list(range(1, 61))
