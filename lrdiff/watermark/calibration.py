"""How the bits of an extractor behave on unmarked images, and whether that supports a binomial test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGES_LIMIT = 1000
BIAS_LIMIT, CORRELATION_LIMIT = 0.08, 0.1
"""Root mean squares over bits, and over pairs of bits."""
BROKEN_BIAS, BROKEN_CORRELATION = 0.4, 0.7
"""Of any one bit or pair, which then is no reading at all."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Bits of unmarked images, other ones than an extractor was whitened with. Every figure is of the worst kind.

    For a key drawn at random the binomial test is exact whatever these are. They bound how far one fixed key may be
    from the mean over keys, once many images are held against it: over keys, the expected number of matches has the
    standard deviation sqrt(n) * bias, and the variance of the matches, n / 4, that of sqrt(2) * correlation * n / 4.

    Attributes:
        images: Kind of image -> number of images.
        mean: Mean whitened logit of each bit, over all images.
        ones: Share of ones of each bit, over all images.
        bias: Distance of the shares of ones from 1/2, root mean square over bits.
        correlation: Correlation of two bits, root mean square over pairs.
        largest_bias: The same of the worst bit.
        largest_correlation: The same of the worst pair.
    """

    images: dict[str, int]
    mean: tuple[float, ...]
    ones: tuple[float, ...]
    bias: float
    correlation: float
    largest_bias: float
    largest_correlation: float

    def unfair(self) -> str | None:
        """Return why the binomial test must not be used, or None when it may."""
        count = sum(self.images.values())
        if count < IMAGES_LIMIT:
            return f"calibrated on {count} images, fewer than {IMAGES_LIMIT}"
        for found, limit, what in (
            (self.largest_bias, BROKEN_BIAS, "a bit is unfair: its share of ones is {} away from 1/2"),
            (self.largest_correlation, BROKEN_CORRELATION, "two bits are one: they have correlation {}"),
            (self.bias, BIAS_LIMIT, "bits are unfair: their shares of ones are {} away from 1/2 in the mean"),
            (self.correlation, CORRELATION_LIMIT, "bits are related: two of them have correlation {} in the mean"),
        ):
            if not found <= limit:
                return f"{what.format(f'{found:.3f}')}, more than {limit}"
        return None


def measure(kinds: Mapping[str, NDArray[np.float64]]) -> Calibration:
    """Measure logits of unmarked images.

    Args:
        kinds: Name of a kind of image -> its logits [N, n], N at least 2.
    """
    together = np.concatenate(list(kinds.values()))
    bits = {name: (logits > 0).astype(np.float64) for name, logits in kinds.items()}
    bias = [np.abs(kind.mean(axis=0) - 0.5) for kind in bits.values()]
    related = [_correlations(kind) for kind in bits.values()]
    return Calibration(
        images={name: len(kind) for name, kind in kinds.items()},
        mean=tuple(together.mean(axis=0).tolist()),
        ones=tuple((together > 0).mean(axis=0).tolist()),
        bias=max(_root_mean_square(kind) for kind in bias),
        correlation=max(_root_mean_square(kind) for kind in related),
        largest_bias=max(float(kind.max()) for kind in bias),
        largest_correlation=max(float(np.abs(kind).max(initial=0.0)) for kind in related),
    )


def _correlations(bits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of every pair of bits, [n (n - 1) / 2]."""
    centred = bits - bits.mean(axis=0)
    scale = np.sqrt((centred**2).mean(axis=0))
    scale[scale == 0] = 1.0  # a bit that never changes has no correlation with another; its bias already tells
    return ((centred.T @ centred) / len(bits) / np.outer(scale, scale))[np.triu_indices(bits.shape[1], 1)]


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean())) if values.size else 0.0
