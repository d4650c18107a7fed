"""The empirical null: what an extractor reads in unmarked pictures, and how often chance matches a key there.

Nothing is assumed about the bits. What it costs: N pictures cannot support a false-positive rate below about 3.7 / N.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode

from lrdiff.errors import DataError, ModelError, ShapeError
from lrdiff.files import write_bytes
from lrdiff.images import EXTENSIONS
from lrdiff.watermark import soft
from lrdiff.watermark.calibration import Calibration, measure
from lrdiff.watermark.keys.candidates import count_matches
from lrdiff.watermark.reading import Network, Reading, read_files
from lrdiff.watermark.statistics import Interval, clopper_pearson

FORMAT = 1
KEY = "lrdiff_null"
KEYS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Null:
    """Logits of unmarked pictures.

    Attributes:
        logits: [N, n].
        extractor: Content hash of the extractor that read them.
    """

    logits: NDArray[np.float64] = field(repr=False)
    extractor: str

    def __len__(self) -> int:
        return len(self.logits)

    def calibration(self) -> Calibration:
        """Measure fairness and correlation of the bits, as an extractor's own calibration does."""
        return measure({"given by the user": self.logits})

    def best_matches(self, table: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return, of every unmarked picture, the matches with the key that agrees best.

        This is the statistic that is reported when several keys are tried, so no correction for their number is needed.

        Args:
            table: Keys [K, n].

        Returns:
            [N], sorted.
        """
        read = (self.logits > 0).astype(np.uint8)
        best = np.zeros(len(read), dtype=np.int64)
        for start in range(0, len(table), KEYS_AT_ONCE):
            np.maximum(best, count_matches(read, table[start : start + KEYS_AT_ONCE]).max(axis=1), out=best)
        return np.sort(best)

    def soft_p_value(self, logits: NDArray[np.float64], key: NDArray[np.uint8]) -> float:
        """Return the p-value of one key's soft score among those of the unmarked pictures."""
        null = soft.EmpiricalNull.fit(self.logits, key)
        return null.p_value(soft.score(logits, key.tolist()))

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically.

        Raises:
            DataError: It cannot be written.
        """
        header = json.dumps({"format": FORMAT, "extractor": self.extractor})
        try:
            write_bytes(path, encode({"logits": self.logits.astype(np.float32)}, {KEY: header}))
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error}); choose another place") from error


def tail(best: NDArray[np.int64], matches: int) -> tuple[float, Interval]:
    """Return how often an unmarked picture matches so well.

    Args:
        best: From `Null.best_matches`.
        matches: What was observed.

    Returns:
        The p-value (1 + #{best >= matches}) / (N + 1), valid for any distribution, and the 95 % interval of the rate.
    """
    above = len(best) - int(np.searchsorted(best, matches, side="left"))
    return (1 + above) / (len(best) + 1), clopper_pearson(above, len(best))


def read_null(network: Network, place: Path) -> Null:
    """Read unmarked pictures, or what was read in them before.

    Args:
        network: The extractor.
        place: A folder of pictures (searched with its subfolders), or a file that `Null.save` wrote.

    Raises:
        DataError: Nothing is there, a picture cannot be read, or too few are usable.
        ModelError: The file was read with another extractor.
    """
    if place.is_file():
        return load_null(place, network.sha256())
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"{place}: no pictures here; give a folder of unmarked pictures or a file made from one")
    with closing(read_files(network, files)) as readings:
        return null_of(network, readings, str(place))


def null_of(network: Network, readings: Iterable[Reading | DataError], place: str) -> Null:
    """Gather readings. Pictures that could not be judged, and copies of one file, do not count.

    Raises:
        DataError: A file is no picture, or fewer than two count.
    """
    rows: dict[str, NDArray[np.float64]] = {}
    for reading in readings:
        if isinstance(reading, DataError):
            raise reading
        if reading.doubt is None:
            rows[reading.sha256] = reading.logits[0]
    if len(rows) < 2:
        raise DataError(f"{place}: {len(rows)} usable pictures are too few for a null; give at least some hundred")
    return Null(np.stack(list(rows.values())), network.sha256())


def load_null(path: Path, extractor: str) -> Null:
    """Read a saved null.

    Raises:
        DataError: Damaged, or another kind of file.
        ModelError: It was read with another extractor.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            header = json.loads((opened.metadata() or {})[KEY])
            logits = np.asarray(opened.get_tensor("logits"), dtype=np.float64)
        if header["format"] != FORMAT or logits.ndim != 2 or len(logits) < 2 or not np.isfinite(logits).all():
            raise ShapeError(f"format {header['format']}, logits {logits.shape}")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, ShapeError) as error:
        raise DataError(f"{path}: damaged, or no file of unmarked readings ({error}); make it again") from error
    if header["extractor"] != extractor:
        raise ModelError(
            f"{path}: was read with extractor {header['extractor'][:12]}..., not with {extractor[:12]}...; make it "
            "again with this one"
        )
    return Null(logits, extractor)
