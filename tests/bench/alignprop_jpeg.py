"""Whether the differentiable estimate of JPEG sizes orders pictures as files do: scenes of the world, and photos.

python -m tests.bench.alignprop_jpeg FOLDER

FOLDER holds photos of your own; of each, crops in a grid are taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lrdiff.alignprop.rewards import jpeg, jpeg_bits
from lrdiff.images import to_tensor
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes
from tests.bench.result import write

SIDE = 128
ENDINGS = (".png", ".jpg", ".jpeg")
SCENES = 48


def main(arguments: list[str]) -> int:
    """Measure, and write `alignprop_jpeg.json`."""
    torch.set_num_threads(1)
    folder = Path(arguments[0])
    photos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS]
    crops = torch.cat([tiles(path) for path in photos])
    scenes = render(sample_scenes(0, range(SCENES)), SIDE).images / 2 + 0.5
    rows = [
        [name, len(images), correlation(-jpeg(images), jpeg_bits(images))]
        for name, images in (("scenes of the toy world", scenes), (f"crops of {len(photos)} photos", crops))
    ]
    write(
        "alignprop_jpeg", "python -m tests.bench.alignprop_jpeg FOLDER", ["pictures", "number", "rank correlation"],
        rows, f"{SIDE} px, JPEG at quality 95, Spearman's rank correlation; bar 0.97. Photos: "
        f"{', '.join(path.name for path in photos)}.",
    )  # fmt: skip
    return 0


def tiles(path: Path) -> Tensor:
    """Return every whole tile of a photo, at half its size, as [N, 3, SIDE, SIDE] in [0, 1]."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    image = to_tensor(photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)) / 2 + 0.5
    rows, columns = (side // SIDE for side in image.shape[1:])
    image = image[:, : rows * SIDE, : columns * SIDE]
    return image.unflatten(2, (columns, SIDE)).unflatten(1, (rows, SIDE)).permute(1, 3, 0, 2, 4).flatten(0, 1)


def correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
