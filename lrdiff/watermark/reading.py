"""From the bytes of files to logits, in batches of bounded memory."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torch import Tensor

from lrdiff import images
from lrdiff.errors import DataError, ModelError
from lrdiff.watermark.extractor import Extractor
from lrdiff.watermark.torchscript import Scripted
from lrdiff.watermark.views import PLAIN, SEARCH, View

Network = Extractor | Scripted
MIN_SIDE = 16
"""Smaller pictures are read, but the answer is inconclusive."""
FLAT = 2.0
"""Standard deviation, in 8-bit steps, below which a picture has nothing for a mark to hide in."""
MAX_SIDE = 1024
"""Of larger pictures the middle is read: the mark is everywhere, and memory stays near 1 GB."""
BATCH_PIXELS, BATCH_IMAGES = MAX_SIDE * MAX_SIDE, 4
"""What is read at once: pictures of one size, together no larger than the largest one. On a CPU
larger batches fall out of its caches and are slower."""
MAX_BYTES = 400_000_000
"""A larger file is refused before it is read. A picture of the largest size has 300 MB uncompressed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the extractor read in a picture.

    Attributes:
        logits: [readings, n]; one reading, or one for each view of a search. A bit is 1 where its logit is above 0.
        preprocessing: What was done to the picture before.
        sha256: Of the file's bytes.
        doubt: Why this picture cannot be judged, or None.
    """

    logits: NDArray[np.float64] = field(repr=False)
    preprocessing: str
    sha256: str
    doubt: str | None


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded picture on its way to the extractor."""

    tensor: Tensor
    preprocessing: str
    sha256: str
    doubt: str | None


def read_files(
    network: Network, files: Iterable[bytes | Path], *, search: bool = False
) -> Generator[Reading | DataError, None, None]:
    """Read pictures one after the other; those of one size that follow each other are read together.

    Args:
        network: The extractor.
        files: Files as they were received, or where they are. Taken one at a time.
        search: Also read the picture mirrored, turned, tilted and resized; see `views.SEARCH`.

    Yields:
        One item for every file, in order: the reading, or why the file is no picture.

    Raises:
        ModelError: The extractor fails, or gives NaN or infinity.
    """
    waiting: list[_Picture] = []
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            found = _decode(file, Path(folder) / "picture")
            full = waiting and (isinstance(found, DataError) or not _fits(waiting, found))
            if full:
                yield from _read(network, waiting, search)
                waiting = []
            if isinstance(found, DataError):
                yield found
            else:
                waiting.append(found)
        yield from _read(network, waiting, search)


def view_name(number: int) -> str:
    """Return in words how the picture was held for reading `number` of a search."""
    return str(SEARCH[number])


def _fits(waiting: Sequence[_Picture], picture: _Picture) -> bool:
    """Tell whether a picture can be read together with those that wait."""
    pixels = picture.tensor.shape[1] * picture.tensor.shape[2]
    room = len(waiting) < BATCH_IMAGES and (len(waiting) + 1) * pixels <= BATCH_PIXELS
    return room and picture.tensor.shape == waiting[0].tensor.shape


@torch.no_grad()
def _read(network: Network, pictures: Sequence[_Picture], search: bool) -> Iterator[Reading]:
    """Read pictures of one size."""
    if not pictures:
        return
    # The extractor is read in eval mode whatever mode its owner left it in.
    training = network.training
    network.eval()
    try:
        batch = torch.stack([picture.tensor for picture in pictures]).to(network.get_buffer("mean").device)
        logits = torch.stack([read_view(network, batch, view) for view in (SEARCH if search else PLAIN)], dim=1)
    finally:
        network.train(training)
    found = logits.double().cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelError("the extractor gave NaN or infinity, so nothing was read; use another extractor")
    for picture, rows in zip(pictures, found, strict=True):
        yield Reading(rows, picture.preprocessing, picture.sha256, picture.doubt)


def read_view(network: Network, images: Tensor, view: View) -> Tensor:
    """Return logits [B, n] of one view of images [B, 3, H, W] in [-1, 1], at most `MAX_SIDE` a side.

    Read are as many at once as bounded memory allows when they are enlarged.
    """
    pixels = max(1.0, view.scale) ** 2 * images.shape[-2] * images.shape[-1]
    parts = images.split(max(1, int(BATCH_PIXELS / pixels)))
    return torch.cat([network(view(part, MAX_SIDE)) for part in parts])


def _decode(file: bytes | Path, scratch: Path) -> _Picture | DataError:
    """Return the picture as upright 8-bit RGB of bounded size, and what was done to it; or why it is none.

    Args:
        file: The file.
        scratch: Where its bytes are put for reading: hash and picture then come from the same bytes.
    """
    name = str(file) if isinstance(file, Path) else "the picture"
    try:
        data = _bytes(file) if isinstance(file, Path) else file
        scratch.write_bytes(data)
        picture = images.read_image(scratch)
    except DataError as error:
        # The scratch file's name tells nobody anything.
        return DataError(str(error).replace(str(scratch), name))
    with Image.open(io.BytesIO(data)) as image:
        steps = [f"{image.format} {image.mode} {image.width} x {image.height}"]
    steps.append("8-bit sRGB, upright")
    width, height = min(picture.width, MAX_SIDE), min(picture.height, MAX_SIDE)
    if (width, height) != picture.size:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        steps.append(f"middle {width} x {height}")
    return _Picture(images.to_tensor(picture), "; ".join(steps), hashlib.sha256(data).hexdigest(), _doubt(picture))


def _bytes(path: Path) -> bytes:
    """Read a file of bounded size."""
    if not path.is_file():
        raise DataError(f"{path}: {'is no file' if path.exists() else 'is not there'}; name a picture")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its rights") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: is larger than {MAX_BYTES // 10**6} MB, which no picture needs; save it smaller")
    return data


def _doubt(picture: Image.Image) -> str | None:
    """Return why nothing can be said about a picture, or None."""
    if min(picture.size) < MIN_SIDE:
        return f"the picture is {picture.width} x {picture.height}; at least {MIN_SIDE} pixels a side are needed"
    if max(ImageStat.Stat(picture).stddev) < FLAT:
        return "the picture is flat, so there is nothing a mark could be read from"
    return None
