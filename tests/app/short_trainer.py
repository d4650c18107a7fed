"""`python short_trainer.py RUN_DIR [--resume]`: keeps the contract of a run directory without torch.

What it does stands in the run's prompt, so that every end can be played in a second:

    finish          writes a result at once
    wait            logs until it is asked to stop
    deaf            logs for ever
    steps           makes its steps one by one, with a checkpoint after each, and goes on from the newest when resumed
    steps, slow end the same, and takes its time to end
    crash, exit N   ends early, with a traceback or with that exit code
    lie, spoil      says finished without a result, or with another one than it wrote
    late            finishes, and then ends with an exit code

While it computes it holds two locks that nothing else knows, one of the run and one of the device it sees. A second
trainer that meets one of them writes down the overlap.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

from trainers.rundir import RunDir, now, process_identity

STEP_SECONDS = 0.02


def main(run: RunDir, how: str, resume: bool) -> int:
    """Play one run and return the exit code."""
    sys.stdout.write(f"this is {how}\n")
    sys.stdout.flush()
    if how.startswith("exit"):
        return int(how.split()[1])
    with run.locked():
        record = run.read()
        if record["state"] not in (("queued", "stopped", "interrupted", "failed") if resume else ("queued",)):
            sys.stdout.write(f"is {record['state']}\n")
            return 2
        run.update(state="running", process=process_identity(), outcome=None, started=now())
        device = f"seen-{os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        witnesses = [witness(run.path), witness(run.path.parent / device)]
        if how == "crash":
            raise RuntimeError("the disk is on fire")
        total = record["config"]["optim"]["steps"]
        state = play(run, how, total, resume)
        for handle in witnesses:
            os.close(handle)
        step = run.metrics()[-1]["step"] if run.metrics() else 0
        run.update(state=state, artifact=result(run, how), step=step, process=None, ended=now())
    time.sleep(0.5 if how.endswith("slow end") else 0.0)
    return 5 if how == "late" else 0


def play(run: RunDir, how: str, total: int, resume: bool) -> str:
    """Compute until there is an end, and return its state."""
    while how == "deaf" or (how == "wait" and not run.stop_path.exists()):
        log(run, 1)
    if not how.startswith("steps"):
        return "stopped" if how == "wait" else "finished"
    done = run.checkpoint_steps()[-1] if resume else 0
    run.drop_metrics_after(done)
    for step in range(done + 1, total + 1):
        log(run, step)
        run.checkpoint(step).mkdir(parents=True, exist_ok=True)
        if run.stop_path.exists():
            return "stopped"
    return "finished"


def log(run: RunDir, step: int) -> None:
    """Log a step and take the time that it takes."""
    run.append_metrics({"step": step, "loss": 1 / step, "seconds_per_step": STEP_SECONDS, "time": time.time()})
    time.sleep(STEP_SECONDS)


def result(run: RunDir, how: str) -> dict[str, str] | None:
    """Write the result and return what the record says of it."""
    if how == "lie":
        return None
    run.artifact_path.write_bytes(b"weights")
    if how == "spoil":
        run.artifact_path.write_bytes(b"other weights")
    return {"file": run.artifact_path.name, "sha256": hashlib.sha256(b"weights").hexdigest()}


def witness(folder: Path) -> int:
    """Lock a file that only trainers lock; whoever finds it locked writes that down."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / ".witness", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "OVERLAP").touch()
    return handle


if __name__ == "__main__":
    given = RunDir(Path(sys.argv[1]))
    raise SystemExit(main(given, given.read()["config"]["data"]["prompt"], "--resume" in sys.argv[2:]))
