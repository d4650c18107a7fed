"""From the bytes of a file to a verdict."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrdiff.assets import MODELS
from lrdiff.errors import ConfigError, DataError
from lrdiff.watermark import soft, statistics
from lrdiff.watermark.calibration import IMAGES_LIMIT
from lrdiff.watermark.extractor import load
from lrdiff.watermark.keys.candidates import count_matches
from lrdiff.watermark.null import Null, tail
from lrdiff.watermark.reading import Network, Reading, read_files, view_name
from lrdiff.watermark.torchscript import SUFFIXES, load_torchscript
from lrdiff.watermark.verdict import Test, Verdict, decide, decide_by_null

DEFAULT = MODELS / "extractor"
Keys = str | Sequence[str] | NDArray[np.uint8]


def new_key(bits: int = 48) -> str:
    """Draw a key from the operating system's source of randomness, as the statistics ask for."""
    if bits < 1:
        raise ConfigError(f"a key of {bits} bits is impossible; give at least 1")
    return "".join(secrets.choice("01") for _ in range(bits))


def open_extractor(extractor: Network | Path | None = None, *, consent: bool = False) -> Network:
    """Return an extractor.

    Args:
        extractor: One that is open already, its file, or None for the shipped one. TorchScript is known by its suffix.
        consent: TorchScript is code; the user has said that it may run.

    Raises:
        ModelError: Absent, damaged, or TorchScript without consent.
    """
    if extractor is None:
        return load(DEFAULT)
    if not isinstance(extractor, Path):
        return extractor
    path = extractor.expanduser()
    return load_torchscript(path, consent=consent) if path.suffix.lower() in SUFFIXES else load(path)


def verify(
    image_bytes: bytes,
    bits: Keys,
    alpha: float = 1e-6,
    extractor: Network | Path | None = None,
    *,
    search: bool = False,
    null: Null | None = None,
    doubt: str | None = None,
) -> Verdict:
    """Judge whether a picture carries a key.

    Args:
        image_bytes: The file as it was received, not a re-encoded copy.
        bits: A key as a string of 0 and 1, or several keys; the best is reported and their number corrected for. Many
            keys are given as an array [N, n] of 0 and 1.
        alpha: Accepted probability that an unmarked picture is called detected, over all keys and searches.
        extractor: The extractor, its file, or None for the shipped one.
        search: Also try the picture mirrored, turned, tilted and resized: 49 readings, corrected for.
        null: What the extractor reads in unmarked pictures: the test falls back on it where the extractor's
            calibration does not support the binomial one.
        doubt: Why a match would prove nothing, for example that the key is revoked; the answer is then "inconclusive".

    Returns:
        The verdict. An extractor without a fair calibration, a tiny or a flat picture give "inconclusive".

    Raises:
        ConfigError: A key is no string of 0 and 1, has another length than the extractor's, or alpha is out of range.
        DataError: The bytes are no picture, damaged, animated or too large.
        ModelError: The extractor is absent or damaged, or its output is not finite.
    """
    (found,) = verify_many([image_bytes], bits, alpha, extractor, search=search, null=null, doubt=doubt)
    if isinstance(found, DataError):
        raise found
    return found


def verify_many(
    files: Iterable[bytes | Path],
    bits: Keys,
    alpha: float = 1e-6,
    extractor: Network | Path | None = None,
    *,
    search: bool = False,
    null: Null | None = None,
    doubt: str | None = None,
) -> Iterator[Verdict | DataError]:
    """Judge many pictures, each on its own; faster than one after the other, in bounded memory.

    Every picture is a question of its own with the error rate `alpha`: among a million unmarked ones, one may be called
    detected at the default.

    Args:
        files: Files as they were received, or where they are. Taken one at a time.
        bits: See `verify`, as all others.
        alpha: Of each picture.
        extractor: The extractor.
        search: Try other views.
        null: Unmarked pictures.
        doubt: Why a match would prove nothing.

    Yields:
        One item for every file, in order: its verdict, or why it is no picture.

    Raises:
        ConfigError: See `verify`.
        ModelError: See `verify`.
    """
    judge = Judge.make(open_extractor(extractor), bits, alpha, null=null, doubt=doubt)
    for reading in read_files(judge.network, files, search=search):
        yield reading if isinstance(reading, DataError) else judge(reading)


@dataclass(frozen=True, slots=True)
class Judge:
    """Everything that is the same for all pictures. Make it with `Judge.make`.

    Attributes:
        network: The extractor.
        extractor: Its content hash.
        table: Keys [N, n].
        alpha: Accepted false-positive rate.
        test: Which test the extractor supports.
        why: Why it is not the binomial one, or None.
        doubt: Why a match would prove nothing, or None.
        null: Unmarked pictures, or None.
        best: Of every unmarked picture, the matches with the best key; empty where it is not needed.
    """

    network: Network
    extractor: str
    table: NDArray[np.uint8]
    alpha: float
    test: Test
    why: str | None
    doubt: str | None
    null: Null | None
    best: NDArray[np.int64]

    @classmethod
    def make(
        cls, network: Network, bits: Keys, alpha: float, *, null: Null | None = None, doubt: str | None = None
    ) -> Judge:
        """Check keys and alpha, and choose the test.

        Raises:
            ConfigError: A key or alpha is unusable, or the null is another extractor's.
        """
        statistics.check_alpha(alpha)
        table, extractor = _keys(bits, network.bits), network.sha256()
        if null is not None and null.extractor != extractor:
            raise ConfigError("the unmarked pictures were read with another extractor; read them with this one")
        why = _unsupported(network, null)
        test: Test = "binomial" if why is None else "none" if null is None else "empirical"
        best = null.best_matches(table) if null is not None and test == "empirical" else np.zeros(0, dtype=np.int64)
        return cls(network, extractor, table, alpha, test, why, doubt, null, best)

    def __call__(self, reading: Reading) -> Verdict:
        """Judge one picture."""
        matches = count_matches((reading.logits > 0).astype(np.uint8), self.table)
        turn, key = (int(i) for i in np.unravel_index(int(matches.argmax()), matches.shape))
        count, n, keys, searches = int(matches[turn, key]), self.network.bits, len(self.table), len(reading.logits)
        second = int(np.partition(matches[turn], -2)[-2]) if keys > 1 else None
        doubt = self.doubt or reading.doubt
        if doubt is None and second == count:
            doubt = f"two keys agree in {count} of {n} bits, so it cannot be told whose the mark is"
        p, soft_p = statistics.p_value(count, n), soft.p_value(reading.logits[turn], self.table[key].tolist())
        p_corrected, interval = statistics.corrected(p, keys, searches), None
        needed = statistics.threshold(n, self.alpha, keys, searches)
        if self.null is not None and self.test == "empirical":
            assert self.why is not None
            p, interval = tail(self.best, count)
            p_corrected, needed = min(1.0, searches * interval.high), self._needed(searches)
            answer, reason = decide_by_null(
                count, n, self.alpha, images=len(self.null), bound=p_corrected, searches=searches, why=self.why
            )
            if doubt is not None:
                answer, reason = "inconclusive", doubt
        else:
            answer, reason = decide(count, n, self.alpha, keys=keys, searches=searches, doubt=doubt or self.why)
        return Verdict(
            verdict=answer,
            reason=reason,
            matches=count,
            bits=n,
            p_value=p,
            threshold=needed,
            alpha=self.alpha,
            keys=keys,
            searches=searches,
            p_corrected=p_corrected,
            key=key,
            soft_p_value=soft_p,
            read="".join("01"[int(value > 0)] for value in reading.logits[turn]),
            extractor=self.extractor,
            preprocessing=reading.preprocessing
            + (f"; {view_name(turn)}, best of {searches} readings" if searches > 1 else ""),
            sha256=reading.sha256,
            test=self.test,
            second=second,
            soft_score=soft.score(reading.logits[turn], self.table[key].tolist()),
            soft_p_corrected=statistics.corrected(soft_p, keys, searches),
            soft_null_p=self._soft_null(reading.logits[turn], self.table[key], keys * searches),
            null_images=0 if self.null is None else len(self.null),
            null_interval=interval,
        )

    def _needed(self, searches: int) -> int | None:
        """Return the smallest number of matches that the empirical null calls detected, or None."""
        for matches in range(self.network.bits + 1):
            if searches * tail(self.best, matches)[1].high <= self.alpha:
                return matches
        return None

    def _soft_null(self, logits: NDArray[np.float64], key: NDArray[np.uint8], tests: int) -> float | None:
        return None if self.null is None else min(1.0, tests * self.null.soft_p_value(logits, key))


def _keys(bits: Keys, length: int) -> NDArray[np.uint8]:
    """Return keys as [N, n] of 0 and 1."""
    if isinstance(bits, np.ndarray):
        if bits.ndim != 2 or not len(bits) or bits.shape[1] != length or not np.isin(bits, (0, 1)).all():
            raise ConfigError(f"keys {bits.shape}: this extractor needs keys [N, {length}] of 0 and 1, at least one")
        return bits.astype(np.uint8)
    keys = [bits] if isinstance(bits, str) else list(bits)
    if not keys:
        raise ConfigError("no key to look for; give at least one")
    for number, key in enumerate(keys):
        if set(key) - {"0", "1"} or len(key) != length:
            raise ConfigError(
                f"key {number + 1} has {len(key)} characters; this extractor reads keys of {length} characters 0 or 1"
            )
    if len(set(keys)) < len(keys):
        raise ConfigError("a key is given twice; give each once, since their number is corrected for")
    return (np.frombuffer("".join(keys).encode("ascii"), dtype=np.uint8) - ord("0")).reshape(len(keys), length)


def _unsupported(network: Network, null: Null | None) -> str | None:
    """Return why the binomial test must not be used, or None when it may."""
    own = None if network.calibration is None else network.calibration.unfair()
    measured = None if null is None else null.calibration().unfair()
    if network.calibration is None:
        if null is None:
            return "the extractor is not calibrated on unmarked pictures, so the chance of a match is unknown"
        return None if measured is None else f"the unmarked pictures do not support the binomial test: {measured}"
    if own is not None:
        return f"the extractor's calibration does not support the test: {own}"
    # A few pictures cannot refute a calibration; as many as a calibration needs can.
    if null is not None and len(null) >= IMAGES_LIMIT and measured is not None:
        return f"your unmarked pictures do not support the binomial test: {measured}"
    return None
