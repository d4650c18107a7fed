"""What verification says: detected, not detected or inconclusive, with all the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lrdiff.watermark.statistics import Interval, check_alpha, corrected, p_value, threshold

Answer = Literal["detected", "not detected", "inconclusive"]
Test = Literal["binomial", "empirical", "none"]
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
        p_corrected: p-value corrected for keys and searches; the one that decides.
        key: Index of the best key.
        soft_p_value: The same key and reading under the soft test's sign-flip null, not corrected; it does not decide.
        read: The bits that were read, "0" and "1".
        extractor: Content hash of the extractor.
        preprocessing: What was done to the picture before it was read.
        sha256: Of the file's bytes.
        test: What the p-value rests on: "binomial", "empirical" (unmarked pictures the user gave), or "none" when
            neither is supported; then the numbers are the binomial's and prove nothing.
        second: Matches of the second-best key, or None with one key.
        soft_score: S = sum_i s_i y_i / sqrt(n).
        soft_p_corrected: `soft_p_value` corrected for keys and searches.
        soft_null_p: The soft score's p-value among the unmarked pictures, corrected, or None without any.
        null_images: Number of unmarked pictures.
        null_interval: 95 % Clopper-Pearson bounds of the rate of unmarked pictures that match so well, or None.
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
    test: Test = "binomial"
    second: int | None = None
    soft_score: float = 0.0
    soft_p_corrected: float = 1.0
    soft_null_p: float | None = None
    null_images: int = 0
    null_interval: Interval | None = None


def decide(
    matches: int, bits: int, alpha: float, *, keys: int = 1, searches: int = 1, doubt: str | None = None
) -> tuple[Answer, str]:
    """Return the answer of the binomial test and its reason.

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
    if doubt is not None:
        return "inconclusive", doubt
    needed = threshold(bits, alpha, keys, searches)
    if needed is None:
        tried = f"{keys} keys and {searches} readings tried" if searches > 1 else f"{keys} keys tried"
        return "inconclusive", f"{bits} bits cannot reach a false-positive rate of {alpha:g} with {tried}"
    return conclude(f"{matches} of {bits} bits agree, {needed} are needed", p, alpha)


def decide_by_null(
    matches: int, bits: int, alpha: float, *, images: int, bound: float, searches: int, why: str
) -> tuple[Answer, str]:
    """Return the answer of the empirical null and its reason.

    Args:
        matches: Matches with the best key in the best reading.
        bits: Bits of a key.
        alpha: Accepted false-positive rate.
        images: Unmarked pictures in the null.
        bound: Upper 95 % bound of the rate at which they match so well, corrected for searches.
        searches: Readings tried.
        why: Why the binomial test is not used.
    """
    check_alpha(alpha)
    # With k of N above, the two-sided 95 % bound is at least 1 - 0.025^(1/N), about 3.7 / N.
    if searches * (1.0 - 0.025 ** (1.0 / images)) > alpha:
        return "inconclusive", (
            f"{why}; {images} unmarked pictures cannot support a false-positive rate of {alpha:g}: give at least "
            f"{3.7 * searches / alpha:.0f}, or accept a higher rate"
        )
    return conclude(f"{matches} of {bits} bits agree; among {images} unmarked pictures", bound, alpha)


def conclude(count: str, p: float, alpha: float) -> tuple[Answer, str]:
    """Return the answer for a p-value, with the sentence that begins with `count`."""
    if p <= alpha:
        return "detected", f"{count}; chance does this with probability {p:.2g}"
    if p <= DOUBT:
        return "inconclusive", f"{count}; chance does this with probability {p:.2g}, little but more than {alpha:g}"
    return "not detected", f"{count}; this mark was not found, which does not tell where the picture comes from"
