"""Fit a reward to ratings of pictures.

The file has the columns file,score or better,worse. The head is then a reward: ratings=HEAD.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lrdiff.alignprop.ratings import train
from lrdiff.errors import LrdiffError


def main(arguments: list[str]) -> int:
    """Fit and write the head; 2 where the user can put something right."""
    parser = argparse.ArgumentParser(prog="python -m trainers.alignprop.rate", description=__doc__)
    parser.add_argument("ratings", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("--features", default="probe-a", help="probe-a, or a CLIP model's folder")
    parser.add_argument("--strength", type=float, default=1.0, help="of the penalty on the weights")
    given = parser.parse_args(arguments)
    try:
        train(given.ratings, given.features, given.strength).save(given.head)
    except LrdiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{given.head}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
