"""`python -m tests.bench.demo`: the demo's figures and picture, for the README."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from app.demo import SUBJECT, run_demo
from tests.bench.result import write

PICTURE = Path(__file__).resolve().parents[2] / "assets" / "pictures" / "demo.png"


def main(arguments: list[str]) -> None:
    """Run the demo once and write its result file and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default=SUBJECT)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = run_demo(options.subject, steps=options.steps, out=Path(scratch))
        record = json.loads((folder / "demo.json").read_text())
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "demo.png", PICTURE)
    seconds = time.monotonic() - begin
    rows = [[row["name"], row["parameters"], row["likeness"], row["train_seconds"]] for row in record["rows"]]
    rows.append(["real pictures among themselves", None, record["likeness_of_real_images"], None])
    write(
        "demo",
        "python -m tests.bench.demo",
        ["", "trained parameters", "likeness", "training, seconds"],
        [[cell if cell is not None else "-" for cell in row] for row in rows],
        note=f"Subject {record['subject']}, {record['steps']} steps, seed {record['seed']}, one run; "
        f"the whole demo took {seconds:.0f} s.",
        details=record,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
