"""The locks of devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.device import Device, devices, holders
from lrdiff.errors import ConfigError


def test_named_devices_are_independent_and_the_whole_machine_is_all_of_them(tmp_path: Path) -> None:
    whole, first, second = Device(tmp_path), Device(tmp_path, "0"), Device(tmp_path, "1")
    one = first.acquire("mug")
    assert one is not None
    two = second.acquire("")
    assert two is not None
    assert whole.acquire("") is None
    assert Device(tmp_path, "0").acquire("") is None
    assert (whole.holder(), first.holder(), second.holder()) == (None, {"run": "mug"}, {"run": ""})
    assert holders(tmp_path) == [{"run": "mug"}, {"run": ""}]
    one.close()
    two.close()
    with whole.held() as free:
        assert free
        assert (first.acquire(""), second.acquire("")) == (None, None)
        assert whole.holder() == {"run": ""}
    assert holders(tmp_path) == []


def test_a_device_is_held_by_whoever_inherited_it(tmp_path: Path) -> None:
    device = Device(tmp_path, "0")
    hold = device.acquire("mug")
    assert hold is not None
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=hold.handles)
    hold.close()
    try:
        assert device.acquire("") is None
        assert Device(tmp_path).acquire("") is None
        assert device.holder() == {"run": "mug"}
    finally:
        sleeper.kill()
        sleeper.wait()
    with device.held() as free:
        assert free


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("", {}),
        ("1", {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("GPU-1a2b", {"CUDA_VISIBLE_DEVICES": "GPU-1a2b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
    ],
)
def test_a_process_sees_its_device_only(
    tmp_path: Path, name: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(variable, "before")
    assert Device(tmp_path, name).environment == environment
    Device(tmp_path, name).adopt()
    import os

    assert {key: os.environ[key] for key in environment} == environment


@pytest.mark.parametrize("name", ["gpu", "0,1", "../0", "-1", "cuda:0", " "])
def test_what_is_no_device_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no device"):
        devices(tmp_path, [name])


def test_a_device_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 0 is given twice"):
        devices(tmp_path, ["0", "1", "0"])
    assert [device.name for device in devices(tmp_path, [])] == [""]
