"""Whole runs on a tiny Stable Diffusion: how they end, and that they go on exactly where they ended."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError, ConfigError, DataError, LrdiffError, ModelError, RunError
from tests.disk import full_disk
from trainers.__main__ import main
from trainers.registry import run_config_class
from trainers.run import execute
from trainers.rundir import RunDir, create, is_alive, process_identity

STEPS = 24


def settings(model: Path, images: Path, **changes: Any) -> dict[str, Any]:
    """Return the record of a short run; `changes` go in by section."""
    base = {
        "model": str(model),
        "data": {"images": str(images), "batch_size": 2},
        "method": {"r": 2},
        "optim": {"steps": STEPS, "warmup": 3},
        "precision": {"device": "cpu"},
        "watch": {"log_every": 2, "checkpoint_every": 4, "evaluate_every": 12, "preview_every": 0},
    }
    for section, values in changes.items():
        base[section] = base[section] | values if isinstance(values, dict) else values
    return run_config_class("tensor-lora").model_validate(base).model_dump(mode="json")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return a run that nothing interrupted."""
    run = create(tmp_path_factory.mktemp("whole") / "run", "tensor-lora", settings(tiny_model, pictures))
    assert execute(run) == "finished"
    return run


@pytest.fixture
def queued(tiny_model: Path, pictures: Path, tmp_path: Path) -> RunDir:
    """Return a run in state queued, with the settings of `whole`."""
    return create(tmp_path / "run", "tensor-lora", settings(tiny_model, pictures))


def rows(run: RunDir) -> list[dict[str, Any]]:
    """Return the metrics without what a clock decides."""
    return [{k: v for k, v in row.items() if k not in ("time", "seconds_per_step")} for row in run.metrics()]


def assert_same_result(run: RunDir, whole: RunDir) -> None:
    """Compare adapters and last checkpoints bit by bit."""
    files = ["adapter.safetensors", *(f"checkpoints/{STEPS:06d}/{n}.safetensors" for n in ("weights", "optimizer"))]
    for file in files:
        made, expected = load_file(run.path / file), load_file(whole.path / file)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected), file


def start(run: RunDir, *flags: str) -> subprocess.Popen[str]:
    """Start a run in a process of its own, with this process' number of threads: sums depend on it."""
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-m", "trainers", str(run.path), *flags],
        env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.003)


def test_a_finished_run_has_everything(whole: RunDir, tiny_model: Path) -> None:
    record = whole.read()
    assert record["state"] == "finished"
    assert record["outcome"] == "all steps done"
    assert record["step"] == STEPS
    assert record["process"] is None
    assert record["device"].startswith("CPU")
    assert record["peak_memory"] > 50e6
    assert record["started"] <= record["ended"]
    assert record["parameters"] > 0
    assert record["versions"]["torch"]
    artifact = Artifact.load(whole.artifact_path)
    assert record["artifact"]["sha256"] == hashlib.sha256(whole.artifact_path.read_bytes()).hexdigest()
    assert sum(t.numel() for t in artifact.tensors.values()) == record["parameters"]
    assert artifact.header.method == "tensor-lora"
    assert artifact.header.base_model == "tiny"
    assert artifact.header.extra["steps"] == STEPS
    assert artifact.header.extra["metrics"] == {**rows(whole)[-2], **rows(whole)[-1]}
    assert whole.checkpoint_steps() == [STEPS - 4, STEPS]
    steps = [row["step"] for row in whole.metrics() if "loss" in row]
    assert steps == list(range(2, STEPS + 1, 2))
    assert [row["step"] for row in whole.metrics() if "loss_fixed" in row] == [0, 12, STEPS]
    assert "all frozen" in (whole.path / "report.html").read_text()
    log = whole.log_path.read_text()
    assert f"step {STEPS}/{STEPS}" in log
    assert "finished after" in log
    assert "32 layers" in log


def test_the_fixed_loss_falls(whole: RunDir) -> None:
    fixed = [row["loss_fixed"] for row in whole.metrics() if "loss_fixed" in row]
    assert fixed[-1] < 0.995 * fixed[0]


def test_killed_and_resumed_equals_never_killed(queued: RunDir, whole: RunDir) -> None:
    process = start(queued)
    wait_for(lambda: len(queued.checkpoint_steps()) > 0)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    record = queued.read()
    assert record["state"] == "running"
    assert record["process"]["pid"] == process.pid
    assert not is_alive(record["process"])
    with queued.metrics_path.open("a") as file:
        file.write('{"step": 99, "los')
    with pytest.raises(RunError, match="--resume"):
        execute(queued)

    resumed = start(queued, "--resume")
    _, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    record = queued.read()
    assert record["state"] == "finished"
    assert record["resumed"] >= record["started"]
    assert_same_result(queued, whole)
    assert rows(queued) == rows(whole)


def test_killed_between_the_last_checkpoint_and_the_end(whole: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    for path in (run.artifact_path, run.path / "report.html"):
        path.unlink()
    run.update(state="running", process={"pid": 2**22 - 1, "started": "1"})
    assert execute(run, resume=True) == "finished"
    assert_same_result(run, whole)
    assert rows(run) == rows(whole)
    assert Artifact.load(run.artifact_path).header.extra == Artifact.load(whole.artifact_path).header.extra


def test_ctrl_c_saves_and_the_run_can_go_on(queued: RunDir, whole: RunDir) -> None:
    process = start(queued)
    wait_for(lambda: len(queued.checkpoint_steps()) > 0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    record = queued.read()
    assert record["state"] == "stopped"
    assert record["outcome"] == "SIGINT received"
    assert 4 <= record["step"] < STEPS
    assert queued.checkpoint_steps()[-1] == record["step"]
    assert Artifact.load(queued.artifact_path).header.extra["steps"] == record["step"]
    assert (queued.path / "report.html").is_file()
    with pytest.raises(RunError, match="is stopped; resume"):
        execute(queued)
    assert execute(queued, resume=True) == "finished"
    assert_same_result(queued, whole)


@pytest.fixture
def harmless_signals() -> Iterator[None]:
    """Keep a signal that comes when no run listens from ending the tests."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def when_trained(queued: RunDir, harmless_signals: None) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Return a function that runs something, from another thread, once the first checkpoint is there."""
    threads: list[threading.Thread] = []

    def later(act: Callable[[], object]) -> None:
        def run() -> None:
            wait_for(lambda: len(queued.checkpoint_steps()) > 0)
            act()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield later
    for thread in threads:
        thread.join()


def test_the_stop_file_saves_and_the_run_can_go_on(queued: RunDir, whole: RunDir, when_trained: Callable) -> None:
    when_trained(queued.stop_path.touch)
    assert execute(queued) == "stopped"
    record = queued.read()
    assert "STOP" in record["outcome"]
    assert record["step"] < STEPS
    assert execute(queued, resume=True) == "finished"
    assert not queued.stop_path.exists()
    assert_same_result(queued, whole)


def test_a_request_to_terminate_is_a_clean_stop(queued: RunDir, when_trained: Callable) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    when_trained(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert execute(queued) == "stopped"
    assert queued.read()["outcome"] == "SIGTERM received"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_ends_at_once(queued: RunDir, when_trained: Callable) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    when_trained(twice)
    assert main([str(queued.path)]) == 130
    assert queued.read()["state"] == "interrupted"
    assert not queued.artifact_path.exists()
    assert execute(queued, resume=True) == "finished"


def test_a_run_in_a_thread_leaves_signals_alone(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", "tensor-lora", settings(tiny_model, pictures, optim={"steps": 2, "warmup": 0}))
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(execute(run)))
    thread.start()
    thread.join()
    assert outcomes == ["finished"]


def test_ctrl_c_while_the_model_is_prepared(queued: RunDir, harmless_signals: None) -> None:
    def interrupt() -> None:
        wait_for(lambda: queued.read()["state"] == "running")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert execute(queued) == "stopped"
    thread.join()
    assert (queued.read()["step"], queued.checkpoint_steps()) == (0, [0])
    assert not queued.previews.exists()


def bad(case: str, folder: Path, model: Path, images: Path) -> dict[str, Any]:
    """Return settings that cannot work."""
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"")
    (folder / "empty").mkdir()
    one_step = {"steps": 2, "warmup": 0}
    return {
        "absent model": lambda: settings(folder / "nowhere", images),
        "no model": lambda: settings(images, images),
        "absent images": lambda: settings(model, folder / "nowhere"),
        "no images": lambda: settings(model, folder / "empty"),
        "absent validation": lambda: settings(model, images, data={"validation": str(folder / "nowhere")}),
        "broken image": lambda: settings(model, folder),
        "broken validation": lambda: settings(model, images, data={"validation": str(folder)}),
        "too many preview steps": lambda: settings(
            model, images, optim=one_step, watch={"preview_every": 1, "preview_steps": 5000}
        ),
        "disk": lambda: settings(model, images, watch={"keep_checkpoints": 10**12}),
        "exploding": lambda: settings(model, images, optim={"lr": 1e30, "warmup": 0}, watch={"checkpoint_every": 1}),
    }[case]()


CASES: dict[str, tuple[type[LrdiffError], str]] = {
    "absent model": (ModelError, "nowhere"),
    "no model": (ModelError, "not a model folder"),
    "absent images": (DataError, "does not exist"),
    "no images": (DataError, "nothing that is a picture"),
    "absent validation": (DataError, "data.validation: .*nowhere does not exist"),
    "broken image": (DataError, r"broken\.png: is empty"),
    "broken validation": (DataError, r"broken\.png: is empty"),
    "too many preview steps": (ConfigError, "5000"),
    "disk": (RunError, "MB free, but the run needs"),
    "exploding": (RunError, "step 2 is .*the weights of step 1 are kept.*On disk: the checkpoint of step 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_ends_as_failed_with_one_message(
    case: str, tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, message = CASES[case]
    config = bad(case, tmp_path / "bad", tiny_model, pictures)
    run = create(tmp_path / "run", "tensor-lora", config)
    assert main([str(run.path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    record = run.read()
    assert record["state"] == "failed"
    assert record["process"] is None
    assert record["outcome"] in run.log_path.read_text(), "the log ends with the reason"
    assert not run.artifact_path.exists()
    again = create(tmp_path / "again", "tensor-lora", config)
    with pytest.raises(kind, match=message) as caught:
        execute(again)
    said, recorded = (re.sub(r"\d+ MB free", "MB free", text) for text in (str(caught.value), record["outcome"]))
    assert said == recorded.replace(str(run.path), str(again.path))


def test_an_exploding_run_keeps_its_last_good_checkpoint(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, pictures, optim={"lr": 1e30, "warmup": 0}, watch={"checkpoint_every": 1})
    run = create(tmp_path / "run", "tensor-lora", config)
    with pytest.raises(RunError, match=r"\. On disk: the checkpoint of step 1$"):
        execute(run)
    assert run.checkpoint_steps() == [1]
    assert all(bool(torch.isfinite(t).all()) for t in load_file(run.checkpoint(1) / "weights.safetensors").values())


def test_a_full_disk_ends_as_failed_and_keeps_what_was_written(
    queued: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(20_000):
        assert main([str(queued.path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    record = queued.read()
    assert record["state"] == "failed"
    assert "checkpoint not written" in record["outcome"]
    assert [row["step"] for row in queued.metrics()] == [0, 2, 4]
    assert queued.checkpoint_steps() == []


def test_claims(queued: RunDir, whole: RunDir) -> None:
    """A run is taken only in a state that fits, and a refusal changes nothing."""
    before = queued.record_path.read_bytes()
    with pytest.raises(RunError, match="no checkpoint to resume from"):
        execute(queued, resume=True)
    assert queued.record_path.read_bytes() == before
    with pytest.raises(RunError, match="has finished"):
        execute(whole, resume=True)
    with pytest.raises(RunError, match="is finished; resume"):
        execute(whole)
    queued.update(state="running", process=process_identity())
    for resume in (False, True):
        with pytest.raises(RunError, match=f"trained by process {os.getpid()}"):
            execute(queued, resume=resume)
    assert queued.read()["state"] == "running"


AT_ONCE = """
import sys
import trainers.run
from trainers.__main__ import main
print("ready", flush=True)
sys.stdin.readline()
raise SystemExit(main(sys.argv[1:]))
"""


def interrupted(whole: RunDir, path: Path) -> RunDir:
    """Return what a kill between the checkpoints of the last two saves leaves behind."""
    run = RunDir(path)
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.checkpoint(STEPS))
    for file in (run.artifact_path, run.path / "report.html"):
        file.unlink()
    run.update(state="running", process={"pid": 2**22 - 1, "started": "1"})
    return run


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_of_two_processes_at_the_same_instant_one_has_the_run(
    queued: RunDir, whole: RunDir, tmp_path: Path, flags: list[str]
) -> None:
    run = interrupted(whole, tmp_path / "killed") if flags else queued
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(run.path), *flags],
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            text=True,
            **pipes,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    winner, loser = sorted(range(2), key=lambda number: both[number].returncode)
    assert said[loser] == f"{run.path}: is being trained by process {both[winner].pid}; stop that first\n"
    assert run.read()["state"] == "finished"
    assert_same_result(run, whole)
    assert rows(run) == rows(whole)


def test_the_command_line_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["a", "b"]) == 2
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "absent"), "--resume"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("usage: ") == 2
    assert errors.count("not a run directory") == 2


def test_an_edited_record_is_checked(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    cases = {
        "optim.lrr: There is no such setting": {"optim": {"lrr": 1}},
        "optim.lr: Must be greater than 0": {"optim": {"lr": -1}},
        "seed: Must be a whole number": {"seed": "x"},
        "data.batch_size: Must be greater than 0": {"data": {"batch_size": 0}},
    }
    config = settings(tiny_model, pictures)
    for number, (message, change) in enumerate(cases.items()):
        edited = json.loads(json.dumps(config))
        for section, values in change.items():
            edited[section] = edited[section] | values if isinstance(values, dict) else values
        run = create(tmp_path / str(number), "tensor-lora", edited)
        with pytest.raises(ConfigError, match=message):
            execute(run)
        assert run.read()["state"] == "failed"
    with pytest.raises(ConfigError, match=r"unknown method 'no-such'; known methods: tensor-lora"):
        execute(create(tmp_path / "method", "no-such", config))


def test_a_configuration_changed_by_hand_is_not_resumed(queued: RunDir, when_trained: Callable) -> None:
    when_trained(queued.stop_path.touch)
    execute(queued)
    config = queued.read()["config"]
    queued.update(config=config | {"optim": config["optim"] | {"lr": 0.5}})
    with pytest.raises(RunError, match=r"optim\.lr was 0\.002, is 0\.5"):
        execute(queued, resume=True)
    queued.update(config=config)
    assert execute(queued, resume=True) == "finished"


def test_a_damaged_result_is_not_called_finished(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives back other bytes than were written."""
    save = Artifact.save

    def rot(self: Artifact, path: Path) -> None:
        save(self, path)
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(Artifact, "save", rot)
    run = create(tmp_path / "run", "tensor-lora", settings(tiny_model, pictures, optim={"steps": 1, "warmup": 0}))
    with pytest.raises(ArtifactError, match="differs from what was trained"):
        execute(run)
    assert run.read()["state"] == "failed"
