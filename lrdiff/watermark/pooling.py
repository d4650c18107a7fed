"""Several images of one suspected model, judged together.

The matches of m images with one key are added: K = sum_i K_i of m n bits. Two chances are computed for this sum, and
the larger one decides.

    binomial    K ~ Bin(m n, 1/2), where the extractor's calibration supports fair and independent bits
    sign flip   each bit's votes c_j (images that read a 1) held fixed, the key's bits drawn anew

The images of one model share a style, which may push a bit to one side in all of them without any mark; the binomial
test would count that m times. The second test does not: given the images, it is exact for a key that was drawn at
random and has nothing to do with them. Its smallest p-value is 2^-n, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdiff.errors import ConfigError, DataError
from lrdiff.watermark import soft, statistics
from lrdiff.watermark.keys.candidates import count_matches
from lrdiff.watermark.null import Null
from lrdiff.watermark.reading import Network, Reading, read_files, view_name
from lrdiff.watermark.verdict import Answer, conclude
from lrdiff.watermark.verifier import Judge, Keys, open_extractor

LARGEST = 10_000


@dataclass(frozen=True, slots=True)
class PooledVerdict:
    """The answer for several images of one suspected model together.

    Attributes:
        verdict: The answer; "not detected" means only that this mark was not found.
        reason: Why, for people.
        images: Number of images, fixed before they were read.
        matches: Bits that agree with the best key, over all images.
        bits: Bits that were read, over all images.
        p_value: Probability of so many matches under the binomial test, for one key.
        votes_p_value: The same under the sign-flip test.
        threshold: Matches that the binomial test needs.
        alpha: Accepted false-positive rate of the whole question.
        keys: Number of keys tried.
        searches: Number of views tried, the same for all images.
        p_corrected: The larger p-value, corrected for keys and searches; the one that decides.
        key: Index of the best key.
        each: Matches of each image.
        extractor: Content hash of the extractor.
        preprocessing: How the best reading was turned.
        sha256: Of each file's bytes.
    """

    verdict: Answer
    reason: str
    images: int
    matches: int
    bits: int
    p_value: float
    votes_p_value: float
    threshold: int | None
    alpha: float
    keys: int
    searches: int
    p_corrected: float
    key: int
    each: tuple[int, ...]
    extractor: str
    preprocessing: str
    sha256: tuple[str, ...]


def verify_pooled(
    files: Iterable[bytes | Path],
    bits: Keys,
    alpha: float = 1e-6,
    extractor: Network | Path | None = None,
    *,
    count: int,
    search: bool = False,
    null: Null | None = None,
    doubt: str | None = None,
) -> PooledVerdict:
    """Judge whether a model marks its images with a key, from several of its images.

    Args:
        files: Different images of one model, as they were received. All count: leaving out those that do not fit would
            make the error rate meaningless.
        bits: See `verifier.verify`.
        alpha: Accepted probability that an unmarked model is called detected.
        extractor: The extractor, its file, or None for the shipped one.
        count: How many images there are; decided before they are read, and checked.
        search: Also try all of them mirrored, turned, tilted and resized.
        null: Unmarked pictures that calibrate an extractor without a calibration.
        doubt: Why a match would prove nothing.

    Raises:
        ConfigError: Another number of images than declared, one image twice, or a key or alpha is unusable.
        DataError: One of the files is no picture.
        ModelError: The extractor is absent, damaged or gives NaN.
    """
    if not 2 <= count <= LARGEST:
        raise ConfigError(f"{count} images cannot be pooled; declare from 2 to {LARGEST}")
    judge = Judge.make(open_extractor(extractor), bits, alpha, null=null, doubt=doubt)
    with closing(read_files(judge.network, files, search=search)) as found:
        readings = _all(found)
    if len(readings) != count:
        raise ConfigError(f"{count} images were declared and {len(readings)} are here; all declared ones must count")
    names = [reading.sha256 for reading in readings]
    if len(set(names)) < count:
        raise ConfigError("one image is there twice; pool different images, since a copy is no new evidence")
    read = (np.stack([reading.logits for reading in readings]) > 0).astype(np.uint8)  # [images, readings, n]
    searches = read.shape[1]
    matches = np.stack([count_matches(read[:, turn], judge.table).sum(axis=0) for turn in range(searches)])
    turn, key = (int(i) for i in np.unravel_index(int(matches.argmax()), matches.shape))
    total, n, keys = int(matches[turn, key]), count * judge.network.bits, len(judge.table)
    votes = read[:, turn].sum(axis=0) - count / 2
    p_values = statistics.p_value(total, n), soft.p_value(votes, judge.table[key].tolist())
    needed = statistics.threshold(n, alpha, keys, searches)
    p = statistics.corrected(max(p_values), keys, searches)
    tied = keys > 1 and int((matches[turn] == total).sum()) > 1
    answer, reason = conclude(f"{total} of {n} bits of {count} images agree", p, alpha)
    problem = _doubt(judge, readings, needed) or ("two keys agree equally well" if tied else None)
    if problem is not None:
        answer, reason = "inconclusive", problem
    return PooledVerdict(
        verdict=answer,
        reason=reason,
        images=count,
        matches=total,
        bits=n,
        p_value=p_values[0],
        votes_p_value=p_values[1],
        threshold=needed,
        alpha=alpha,
        keys=keys,
        searches=searches,
        p_corrected=p,
        key=key,
        each=tuple(int((row == judge.table[key]).sum()) for row in read[:, turn]),
        extractor=judge.extractor,
        preprocessing="8-bit sRGB, upright" + (f"; {view_name(turn)}, best of {searches}" if searches > 1 else ""),
        sha256=tuple(names),
    )


def _all(readings: Iterable[Reading | DataError]) -> list[Reading]:
    """Return the readings; one file that is no picture spoils the pool."""
    found = []
    for reading in readings:
        if isinstance(reading, DataError):
            raise reading
        found.append(reading)
    return found


def _doubt(judge: Judge, readings: list[Reading], needed: int | None) -> str | None:
    """Return why nothing can be said, or None."""
    if judge.doubt is not None:
        return judge.doubt
    for number, reading in enumerate(readings, start=1):
        if reading.doubt is not None:
            return f"image {number}: {reading.doubt}"
    if judge.test != "binomial":
        return f"{judge.why}; images are pooled only where it does"
    if needed is None:
        return f"so few bits cannot reach a false-positive rate of {judge.alpha:g} with {len(judge.table)} keys tried"
    return None
