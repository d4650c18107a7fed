"""What a run will take is measured in a process of its own and remembered by kind of run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import estimate, text
from app.estimate import Measured
from app.jobs import Queue
from lrdiff.errors import DataError, RunError

MEASURED = Measured(load=10, step=0.5, preview=4, evaluate=2, memory=10**9, disk=10**8)


def config(**optim: int) -> dict[str, Any]:
    watch = {"preview_every": 100, "evaluate_every": 50}
    return {"optim": {"steps": 300, "accumulate": 1} | optim, "watch": watch}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Previews before the first step, at 100, 200 and 300; evaluations at 0, 50, ..., 300.
        (config(), 10 + 300 * 0.5 + 4 * 4 + 7 * 2),
        (config(accumulate=2), 10 + 600 * 0.5 + 4 * 4 + 7 * 2),
        # The last step is previewed even where it is no hundredth.
        (config(steps=250), 10 + 250 * 0.5 + 4 * 4 + 6 * 2),
        (config() | {"watch": {"preview_every": 0, "evaluate_every": 0}}, 160),
    ],
)
def test_the_time_is_the_sum_of_its_parts(settings: dict[str, Any], expected: float) -> None:
    assert estimate.seconds(MEASURED, settings) == expected


def test_a_preflight_is_measured_and_remembered(
    queue: Queue, photos: list[Path], settings: Callable[..., dict[str, Any]]
) -> None:
    order = settings(steps=50)
    assert estimate.sentence(queue, "tensor-lora", order) == text.ESTIMATE_NONE
    found = estimate.measure(queue, "tensor-lora", order, {path.name: path for path in photos})
    assert found.step > 0
    assert found.memory > 10**7
    assert any("parameters on" in line for line in found.lines)
    assert estimate.known(queue, "tensor-lora", order) == found
    # Length and rate do not matter for the speed; another batch size does.
    longer = order | {"optim": order["optim"] | {"steps": 500, "lr": 1e-4}}
    assert estimate.known(queue, "tensor-lora", longer) == found
    assert estimate.known(queue, "tensor-lora", order | {"data": order["data"] | {"batch_size": 2}}) is None
    assert estimate.sentence(queue, "tensor-lora", order).startswith("About ")
    assert [run for run, _ in queue.runs()] == []
    broken = photos[0].with_name("broken.png")
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png.*cannot be read") as caught:
        estimate.measure(queue, "tensor-lora", order, {"broken.png": broken})
    assert "lrdiff-check-" not in str(caught.value)


def test_a_check_does_not_disturb_a_training(queue: Queue, settings: Callable[..., dict[str, Any]]) -> None:
    queue.root.mkdir(parents=True, exist_ok=True)
    hold = queue.device.acquire("mug-001")
    assert hold is not None
    with pytest.raises(RunError, match="in use by mug-001"):
        estimate.measure(queue, "tensor-lora", settings(), {})
    hold.close()


def test_a_damaged_memory_is_measured_anew(queue: Queue, settings: Callable[..., dict[str, Any]]) -> None:
    queue.root.mkdir(parents=True, exist_ok=True)
    (queue.root / estimate.FILE).write_text("{")
    assert estimate.known(queue, "tensor-lora", settings()) is None
