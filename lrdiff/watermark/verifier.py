"""From the bytes of a file to a verdict."""

from __future__ import annotations

import hashlib
import io
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lrdiff import images
from lrdiff.backbones import embedded
from lrdiff.errors import ConfigError, DataError
from lrdiff.watermark import soft, statistics
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.verdict import Verdict, decide

DEFAULT = embedded.ROOT / "extractor"
MIN_SIDE = 16
"""Smaller pictures are read, but the answer is inconclusive."""
FLAT = 2.0
"""Standard deviation, in 8-bit steps, below which a picture has nothing for a mark to hide in."""
MAX_SIDE = 1024
"""Of larger pictures the middle is read: the mark is everywhere, and memory stays near 1 GB."""


def new_key(bits: int = 48) -> str:
    """Draw a key from the operating system's source of randomness, as the statistics ask for."""
    if bits < 1:
        raise ConfigError(f"a key of {bits} bits is impossible; give at least 1")
    return "".join(secrets.choice("01") for _ in range(bits))


def verify(
    image_bytes: bytes,
    bits: str | Sequence[str],
    alpha: float = 1e-6,
    extractor: Extractor | Path | None = None,
    *,
    search: bool = False,
) -> Verdict:
    """Judge whether a picture carries a key.

    Args:
        image_bytes: The file as it was received, not a re-encoded copy.
        bits: A key as a string of 0 and 1, or several keys; the best is reported and their number corrected for.
        alpha: Accepted probability that an unmarked picture is called detected, over all keys and searches.
        extractor: The extractor, its file, or None for the shipped one.
        search: Also try the mirrored picture and quarter turns: eight readings, corrected for.

    Returns:
        The verdict. An extractor without a fair calibration, a tiny or a flat picture give "inconclusive".

    Raises:
        ConfigError: A key is no string of 0 and 1, has another length than the extractor's, or alpha is out of range.
        DataError: The bytes are no picture, damaged, animated or too large.
        ModelError: The extractor is absent or damaged.
        ShapeError: The extractor's output is not finite.
    """
    statistics.check_alpha(alpha)
    network = extractor if isinstance(extractor, Extractor) else load(extractor or DEFAULT)
    table = _keys(bits, network.bits)
    picture, preprocessing = _read(image_bytes)
    logits = _logits(network, picture, search)
    matches = ((logits > 0)[:, None] == table[None].astype(bool)).sum(axis=2)
    turn, best = (int(i) for i in np.unravel_index(int(matches.argmax()), matches.shape))
    count, keys, searches = int(matches[turn, best]), len(table), len(logits)
    answer, reason = decide(count, network.bits, alpha, keys=keys, searches=searches, doubt=_doubt(network, picture))
    p = statistics.p_value(count, network.bits)
    return Verdict(
        verdict=answer,
        reason=reason,
        matches=count,
        bits=network.bits,
        p_value=p,
        threshold=statistics.threshold(network.bits, alpha, keys, searches),
        alpha=alpha,
        keys=keys,
        searches=searches,
        p_corrected=statistics.corrected(p, keys, searches),
        key=best,
        soft_p_value=soft.p_value(logits[turn], table[best].tolist()),
        read="".join("01"[int(value > 0)] for value in logits[turn]),
        extractor=network.sha256(),
        preprocessing=preprocessing + (f"; {_name(turn)} of {searches} readings" if search else ""),
        sha256=hashlib.sha256(image_bytes).hexdigest(),
    )


def _keys(bits: str | Sequence[str], length: int) -> NDArray[np.uint8]:
    """Return keys as [N, n] of 0 and 1."""
    keys = [bits] if isinstance(bits, str) else list(bits)
    if not keys:
        raise ConfigError("no key to look for; give at least one")
    for number, key in enumerate(keys):
        if set(key) - {"0", "1"} or len(key) != length:
            raise ConfigError(
                f"key {number + 1} has {len(key)} characters; this extractor reads keys of {length} characters 0 or 1"
            )
    return (np.frombuffer("".join(keys).encode("ascii"), dtype=np.uint8) - ord("0")).reshape(len(keys), length)


def _read(data: bytes) -> tuple[Image.Image, str]:
    """Return the picture as upright 8-bit RGB of bounded size, and what was done to it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(data)
        try:
            picture = images.read_image(path)
        except DataError as error:
            # The temporary name tells nobody anything.
            raise DataError(str(error).replace(str(path), "the picture")) from error
    with Image.open(io.BytesIO(data)) as image:
        steps = [f"{image.format} {image.mode} {image.width} x {image.height}"]
    steps.append("8-bit sRGB, upright")
    width, height = min(picture.width, MAX_SIDE), min(picture.height, MAX_SIDE)
    if (width, height) != picture.size:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        steps.append(f"middle {width} x {height}")
    return picture, "; ".join(steps)


@torch.no_grad()
def _logits(network: Extractor, picture: Image.Image, search: bool) -> NDArray[np.float64]:
    """Return [readings, n] logits."""
    # The extractor is read in eval mode whatever mode its owner left it in.
    training = network.training
    network.eval()
    try:
        first = next(network.parameters())
        image = images.to_tensor(picture)[None].to(first.device)
        rows = [network(_turned(image, turn))[0] for turn in range(8 if search else 1)]
    finally:
        network.train(training)
    return torch.stack(rows).double().cpu().numpy()


def _turned(image: Tensor, turn: int) -> Tensor:
    """Return one of the eight mirrored and quarter-turned versions; number 0 is the picture itself."""
    return torch.rot90(image.flip(3) if turn >= 4 else image, turn % 4, (2, 3))


def _name(turn: int) -> str:
    return f"{'mirrored, ' if turn >= 4 else ''}turned {90 * (turn % 4)} degrees, best"


def _doubt(network: Extractor, picture: Image.Image) -> str | None:
    """Return why the count of matches cannot be trusted, or None."""
    if network.calibration is None:
        return "the extractor is not calibrated on unmarked pictures, so the chance of a match is unknown"
    unfair = network.calibration.unfair()
    if unfair is not None:
        return f"the extractor's calibration does not support the test: {unfair}"
    if min(picture.size) < MIN_SIDE:
        return f"the picture is {picture.width} x {picture.height}; at least {MIN_SIDE} pixels a side are needed"
    if float(np.asarray(picture, dtype=np.float64).std(axis=(0, 1)).max()) < FLAT:
        return "the picture is flat, so there is nothing a mark could be read from"
    return None
