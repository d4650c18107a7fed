"""How many pictures a second are verified: from a file's bytes to the verdict, decoding included.

python -m tests.bench.watermark_speed [--side 256] [--images 64]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lrdiff.images import to_image
from lrdiff.rng import stream
from lrdiff.watermark.reading import Network, read_files
from lrdiff.watermark.verifier import DEFAULT, new_key, open_extractor, verify
from tests.bench.result import write
from trainers.embedded.dead_leaves import dead_leaves

GOAL = 30.0
WITH_VERDICT = "one by one, with verdict"


def main(arguments: list[str]) -> int:
    """Measure, print, write `watermark_speed.json`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watermark_speed", description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--extractor", type=Path)
    given = parser.parse_args(arguments)
    extractor = open_extractor(given.extractor or DEFAULT)
    files = _files(given.images, given.side)
    key = new_key(extractor.bits)
    load = os.getloadavg()[0]
    before = torch.get_num_threads()
    rows: list[list[Any]] = []
    details: dict[str, Any] = {}

    def measure(place: str, network: Network) -> None:
        for name, work in _ways(network, files, key):
            wall, busy = _speeds(work, len(files), given.repeats)
            spread = f"{min(wall):.3g} to {max(wall):.3g}"
            rows.append([place, name, statistics.median(wall), spread, statistics.median(busy)])
            details[f"{place}, {name}"] = {"per_second": wall, "per_processor_second": busy}
            print(*rows[-1], sep="  ", flush=True)

    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            measure(f"CPU, {threads} thread{'s' * (threads > 1)}", extractor)
        if torch.cuda.is_available():
            torch.set_num_threads(before)
            measure(torch.cuda.get_device_name(), extractor.to("cuda"))
    finally:
        torch.set_num_threads(before)
    best = max(row[2] for row in rows if row[0].startswith("CPU"))
    alone = max(row[4] for row in rows if row[0].startswith("CPU") and row[1] == WITH_VERDICT)
    parameters = sum(parameter.numel() for parameter in extractor.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in extractor.state_dict().values())
    note = (
        f"PNG files of {given.side} x {given.side} pixels in memory, one key; median and range of {given.repeats} "
        f"rounds of {given.images}. The extractor has {parameters:,} parameters, {size / 1e6:.2f} MB. Goal on two "
        f"cores: {GOAL:g} a second. By the clock it was {_met(best)} while the machine had a load average of "
        f"{load:.1f}; by processor time one core makes {alone:.1f} a second, verdicts included, so it is {_met(alone)}."
        + ("" if torch.cuda.is_available() else " There was no GPU.")
    )
    columns = ["", "way", "pictures a second", "range", "pictures a second of processor time"]
    command = " ".join(["python -m tests.bench.watermark_speed", *arguments])
    write("watermark_speed", command, columns, rows, note, {"speeds": details})
    return 0


def _met(speed: float) -> str:
    return "met" if speed >= GOAL else "missed"


def _files(count: int, side: int) -> list[bytes]:
    pictures = dead_leaves(count, side, stream(0, "speed"))
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        to_image(picture).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def _ways(extractor: Network, files: list[bytes], key: str) -> list[tuple[str, Callable[[], None]]]:
    def one_by_one() -> None:
        for file in files:
            verify(file, key, extractor=extractor)

    def together() -> None:
        assert sum(1 for _ in read_files(extractor, files)) == len(files)

    return [(WITH_VERDICT, one_by_one), ("many files, bits only", together)]


def _speeds(work: Callable[[], None], count: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return pictures a second, and a second of processor time, of every round after one that warms up."""
    wall, processor = [], []
    for _ in range(repeats + 1):
        begin, busy = time.perf_counter(), time.process_time()
        work()
        wall.append(count / (time.perf_counter() - begin))
        processor.append(count / (time.process_time() - busy))
    return wall[1:], processor[1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
