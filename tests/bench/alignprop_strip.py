"""Pictures before and after training towards rewards, from the same noise, for the README.

python -m tests.bench.alignprop_strip
"""

from __future__ import annotations

import sys
from pathlib import Path

from lrdiff.images import to_image
from lrdiff.sheet import sheet
from tests.bench.alignprop_trial import WAYS, make, train

PICTURE = Path(__file__).resolve().parents[2] / "assets" / "pictures" / "alignprop.png"
REWARDS = ("compressibility", "brightness")
PICTURES = 24
SHOWN = 5
STEPS = 10
"""Sampling steps of the pictures that are shown."""


def main(arguments: list[str]) -> int:
    """Train towards every reward, and draw."""
    texts, rows, names = [], [], []
    for reward in REWARDS:
        method = make((reward,), 0, WAYS["last-k, k = 1"], pictures=PICTURES)
        texts = method.held_out[:SHOWN]
        for name in ("base model", f"{reward}, after {PICTURES} pictures"):
            if name in names:
                continue
            if name != "base model":
                train(method)
            method.eval()
            names.append(name)
            rows.append([to_image(image * 2 - 1) for image in method._draw(texts, "strip", STEPS)])
    sheet(rows, names, [text.removeprefix("a photo of ") for text in texts]).save(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
