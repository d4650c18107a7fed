"""The locks that let one thing at a time compute on a device: one trainer, or one generation."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import text_runs
from lrdiff.errors import ConfigError
from trainers.locks import open_lock, try_lock

NAME = re.compile(r"cpu|\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+")
HOLDER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Hold:
    """A device that is taken. The lock lasts until every copy of the handles, also in child processes, is closed."""

    handles: tuple[int, ...]

    def describe(self, holder: dict[str, Any]) -> None:
        """Write who holds the device."""
        os.truncate(self.handles[-1], 0)
        os.pwrite(self.handles[-1], json.dumps(holder).encode(), 0)

    def close(self) -> None:
        """Let go of it, as far as this process is concerned."""
        for handle in self.handles:
            os.close(handle)


class Device:
    """One device of the machine, or the whole machine.

    Devices with a name are independent of each other. The one without is the whole machine: it is free only while
    none of the others is taken, and they are free only while it is. So processes that divide the machine in different
    ways still never share a device.
    """

    def __init__(self, root: Path, name: str = "") -> None:
        """Use the lock files of a folder of runs.

        Args:
            root: The folder.
            name: Number or UUID of a GPU, "cpu", or "" for the whole machine.

        Raises:
            ConfigError: The name is none of these.
        """
        if name and not NAME.fullmatch(name):
            raise ConfigError(text_runs.BAD_DEVICE.format(name=name))
        self.name = name
        self._whole = root / ".device.lock"
        self.path = root / f".device-{name.replace('/', '_')}.lock" if name else self._whole

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to see this device and no other."""
        if not self.name:
            return {}
        visible = "" if self.name == "cpu" else self.name
        # Numbers then mean what nvidia-smi shows, not the order of speed.
        return {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def adopt(self) -> None:
        """Let this process see this device only. Must come before torch is imported."""
        os.environ.update(self.environment)

    def acquire(self, holder: str) -> Hold | None:
        """Take the device, or return None where it is taken.

        Args:
            holder: The name of a run, or "" for something else.

        Raises:
            OSError: The lock file cannot be written.
        """
        handles: list[int] = []
        for path, shared in [(self._whole, True), (self.path, False)] if self.name else [(self._whole, False)]:
            handles.append(open_lock(path))
            if not try_lock(handles[-1], shared):
                Hold(tuple(handles)).close()
                return None
        hold = Hold(tuple(handles))
        try:
            hold.describe({"run": holder})
        except OSError:
            hold.close()
            raise
        return hold

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the device: {"run": name, "pid": ..., "started": ...}, or None when nobody does."""
        return _holder(self.path)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Try to take the device for the time of a `with` block. Yields whether it was free."""
        hold = self.acquire("")
        try:
            yield hold is not None
        finally:
            if hold is not None:
                hold.close()


def devices(root: Path, names: Sequence[str]) -> tuple[Device, ...]:
    """Return the devices of these names, or the whole machine. Raises `ConfigError` for a bad name and one twice."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ConfigError(text_runs.DEVICE_TWICE.format(name=twice))
    return tuple(Device(root, name) for name in names) or (Device(root),)


def holders(root: Path) -> list[dict[str, Any]]:
    """Return who holds any device, whichever process divided the machine how."""
    found = (_holder(path) for path in sorted(root.glob(".device*.lock")))
    return [holder for holder in found if holder is not None]


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # A shared lock goes together with those of named devices on the whole machine, which hold nothing of it.
        if try_lock(handle, shared=True):
            return None
        content = os.pread(handle, HOLDER_BYTES, 0)
    finally:
        os.close(handle)
    try:
        found = json.loads(content)
    except ValueError:
        # The holder is writing its name at this moment.
        return {"run": ""}
    return found if isinstance(found, dict) else {"run": ""}
