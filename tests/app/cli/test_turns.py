"""One thing at a time on a device, also for what a terminal starts: commands wait for their turn, and say for whom."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from app.commands import turns
from app.commands.turns import folder_here, folder_of, turn
from app.device import Device, holders
from app.jobs import Queue
from tests.app.cli.conftest import Lrdiff
from tests.app.conftest import SHORT_TRAINER, ended, submit, wait_for


def test_a_terminal_run_waits_for_the_device_and_holds_it(
    lrdiff: Lrdiff, photos: Path, short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, name = tmp_path / "runs", "tensor-lora-mug-001"
    root.mkdir()
    hold = Device(root).acquire("")
    assert hold is not None
    hold.describe({"run": "another"})
    told: list[str] = []
    seen: list[object] = []

    def look() -> None:
        wait_for(lambda: any(holder.get("run") == name for holder in holders(root)))
        seen.extend(holder["run"] for holder in holders(root))

    def hear(message: str) -> None:
        # It has come to the point where it waits; now the other one ends.
        told.append(message)
        hold.close()

    monkeypatch.setattr(turns, "say", hear)
    watcher = threading.Thread(target=look)
    watcher.start()
    code, _, _ = lrdiff("train", "tensor-lora", "--data.images", photos, "--out", f"runs/{name}", *short)
    watcher.join()
    assert (code, seen) == (0, [name])
    assert told == [f"waits until another is done in {root}; Ctrl-C gives up, --share does not wait"]
    assert holders(root) == []


def test_who_is_told_to_share_does_not_wait(tmp_path: Path) -> None:
    hold = Device(tmp_path).acquire("")
    assert hold is not None
    with turn(tmp_path, share=True):
        assert holders(tmp_path) == [{"run": ""}]
    hold.close()


def test_a_worker_waits_for_a_terminal(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "runs", trainer=SHORT_TRAINER, interval=0.02)
    run = submit(queue, "finish")
    with turn(queue.root, share=False) as held_for:
        held_for(queue.root / "mine")
        queue.tick()
        assert run.read()["state"] == "queued"
        assert [holder["run"] for holder in holders(queue.root)] == ["mine"]
    with turn(queue.root, share=True):
        queue.tick()
        wait_for(ended(run))
    assert run.read()["state"] == "finished"
    wait_for(lambda: not holders(queue.root))
    queue.tick()


def test_who_takes_turns_with_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    assert folder_of(Path("runs/mug")) == root
    assert folder_of(Path("runs/demo-mug-001/lora")) == root
    assert folder_of(Path("elsewhere/mug")) is None
    assert folder_here() is None
    for folder in (root, tmp_path / "elsewhere"):
        queue = Queue(folder)
        queue.start()
        queue.close()
    assert folder_of(Path("elsewhere/mug")) == tmp_path / "elsewhere"
    assert folder_here() == root
