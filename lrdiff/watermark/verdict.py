"""What verification says: detected, not detected or inconclusive, with all the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lrdiff.watermark.statistics import check_alpha, corrected, p_value, threshold

Answer = Literal["detected", "not detected", "inconclusive"]
DOUBT = 1e-3
"""Up to this corrected p-value a picture that misses alpha is called inconclusive: chance rarely comes so near."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one picture. It never says who or what made the picture.

    Attributes:
        verdict: The answer; "not detected" means only that this mark was not found.
        reason: Why, for people.
        matches: Read bits that agree with the best key.
        bits: Bits of a key.
        p_value: Probability of so many matches by chance, for one key and one reading.
        threshold: Matches needed, or None when no number is enough at this alpha.
        alpha: Accepted false-positive rate of the whole question.
        keys: Number of keys tried.
        searches: Number of geometric versions of the picture tried.
        p_corrected: p-value corrected for keys and searches.
        key: Index of the best key.
        soft_p_value: The same key and reading under the soft test, not corrected; it does not decide.
        read: The bits that were read, "0" and "1".
        extractor: Content hash of the extractor.
        preprocessing: What was done to the picture before it was read.
        sha256: Of the file's bytes.
    """

    verdict: Answer
    reason: str
    matches: int
    bits: int
    p_value: float
    threshold: int | None
    alpha: float
    keys: int
    searches: int
    p_corrected: float
    key: int
    soft_p_value: float
    read: str
    extractor: str
    preprocessing: str
    sha256: str


def decide(
    matches: int, bits: int, alpha: float, *, keys: int = 1, searches: int = 1, doubt: str | None = None
) -> tuple[Answer, str]:
    """Return the answer and its reason.

    Args:
        matches: Matches with the best key in the best reading.
        bits: Bits of a key.
        alpha: Accepted false-positive rate.
        keys: Keys tried.
        searches: Readings tried.
        doubt: Why the numbers cannot be trusted, or None. With it the answer is always "inconclusive".

    Raises:
        ConfigError: A number is out of range.
        ShapeError: The number of matches is impossible.
    """
    check_alpha(alpha)
    p = corrected(p_value(matches, bits), keys, searches)
    needed = threshold(bits, alpha, keys, searches)
    if doubt is not None:
        return "inconclusive", doubt
    if needed is None:
        return "inconclusive", f"{bits} bits cannot reach a false-positive rate of {alpha:g} with {keys} keys tried"
    count = f"{matches} of {bits} bits agree, {needed} are needed"
    if p <= alpha:
        return "detected", f"{count}; chance does this with probability {p:.2g}"
    if p <= DOUBT:
        return "inconclusive", f"{count}; chance does this with probability {p:.2g}, little but more than {alpha:g}"
    return "not detected", f"{count}; this mark was not found, which does not tell where the picture comes from"
