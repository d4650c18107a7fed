"""Ten steps of every method give the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.record import FOLDER, STEPS, trajectory
from trainers.registry import METHODS

TOLERANCE = 1e-4
"""Relative. Threads and processors change sums in the last bits (about 1e-6 here); a changed method changes more."""
FILED = {"watermark": 1e-3}
"""Of single steps. Its pictures pass real JPEG files, whose pixels are whole numbers: where one lies on a half, the
last bits decide, and one step of one pixel moves the loss and its gradient by 1e-4. Seen in one of ten steps between
processors with AVX2 and with AVX-512; the other nine agree to 1e-5, and what is trained in the end to 2e-5."""
SMALLEST = 1e-10
"""Absolute. AlignProp's penalty is the square of a difference of 3e-4 between outputs that are rounded at 1e-7."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_give_the_recorded_numbers(method: str, folder: Path) -> None:
    golden = json.loads((FOLDER / f"{method}.json").read_text())
    found = trajectory(method, folder)
    hint = f"re-record with `{golden['command']}` and say why; recorded with {golden['environment']}"
    tolerance = FILED.get(method, TOLERANCE)
    assert len(golden["steps"]) == STEPS
    for row, expected in zip(found["steps"], golden["steps"], strict=True):
        assert row == pytest.approx(expected, rel=tolerance, abs=SMALLEST), hint
    for name in ("before", "after", "norms"):
        assert found[name] == pytest.approx(golden[name], rel=TOLERANCE, abs=SMALLEST), hint


def test_every_method_has_a_recording_and_every_recording_a_method() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(METHODS)
