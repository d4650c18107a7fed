"""Which of many keys a reading is nearest to, fast: one product of matrices of signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lrdiff.errors import ConfigError
from lrdiff.watermark import statistics


@dataclass(frozen=True, slots=True)
class Match:
    """The key nearest to a reading.

    Attributes:
        key: Its id.
        matches: Bits that agree.
        p_value: Chance that one key agrees so well.
        p_corrected: Chance that any of the keys does, 1 - (1 - p)^N.
    """

    key: str
    matches: int
    p_value: float
    p_corrected: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """Keys to compare with, decrypted, in memory only.

    Attributes:
        ids: Their ids.
        table: Their bits [N, n], 0 or 1.
        elsewhere: Keys left out because another extractor reads them.
    """

    ids: tuple[str, ...]
    table: NDArray[np.uint8] = field(repr=False)
    elsewhere: int = 0

    def identify(self, read: str) -> Match:
        """Return the key nearest to the bits that were read.

        Raises:
            ConfigError: There is no key, or the reading has another length.
        """
        if not self.ids:
            raise ConfigError("no key to compare with; register one: lrdiff watermark keys new --owner NAME")
        length = self.table.shape[1]
        if len(read) != length or set(read) - {"0", "1"}:
            raise ConfigError(f"a reading of {len(read)} characters; these keys have {length} bits, 0 or 1")
        bits = np.frombuffer(read.encode("ascii"), dtype=np.uint8)[None] - ord("0")
        counts = count_matches(bits, self.table)[0]
        best = int(counts.argmax())
        p = statistics.p_value(int(counts[best]), length)
        return Match(self.ids[best], int(counts[best]), p, statistics.corrected(p, len(self.ids)))


def count_matches(read: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of agreeing bits of every reading with every key.

    With signs +-1 the scalar product is matches - (n - matches), and float32 counts exactly.

    Args:
        read: Bits [R, n], 0 or 1.
        table: Keys [N, n], 0 or 1.

    Returns:
        [R, N].
    """
    product = _signs(read) @ _signs(table).T
    return ((product + read.shape[1]) / 2).astype(np.int64)


def table_of(keys: Sequence[bytes], length: int) -> NDArray[np.uint8]:
    """Return keys, each `length` ASCII digits, as [N, length] of 0 and 1."""
    return (np.frombuffer(b"".join(keys), dtype=np.uint8) - ord("0")).reshape(len(keys), length)


def _signs(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    return bits.astype(np.float32) * 2 - 1
