"""What is left of a mark after attacks: counts, rates with intervals, tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.images import to_tensor
from lrdiff.rng import stream
from lrdiff.watermark.attacks import Attack
from lrdiff.watermark.model_attacks import SetAttack
from lrdiff.watermark.reading import BATCH_PIXELS, MAX_SIDE, Network, read_view
from lrdiff.watermark.statistics import Interval, clopper_pearson, p_value, threshold
from lrdiff.watermark.views import PLAIN, View

ALPHAS = (1e-6, 1e-3, 1e-2)
"""False-positive rates at which detection is counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One attack at one strength.

    Attributes:
        attack: Its name.
        family: What kind of change it is.
        measure: What the strength counts.
        strength: How strong it was.
        knowledge: What the attacker needs.
        bits: Bits of a key.
        matches: Matching bits of every picture, one sequence per key.
        psnr: Mean PSNR in dB against the pictures before, or None where pixels moved or nothing changed.
    """

    attack: str
    family: str
    measure: str
    strength: float
    knowledge: str
    bits: int
    matches: tuple[tuple[int, ...], ...]
    psnr: float | None

    @property
    def counts(self) -> NDArray[np.int64]:
        """Matches of all pictures of all keys."""
        return np.array([count for key in self.matches for count in key], dtype=np.int64)

    @property
    def accuracy(self) -> float:
        """Share of matching bits."""
        return float(self.counts.mean()) / self.bits

    @property
    def per_key(self) -> list[float]:
        """Share of matching bits of each key."""
        return [float(np.mean(key)) / self.bits for key in self.matches]

    def accuracy_interval(self, confidence: float = 0.95) -> Interval:
        """Return an interval of the share of matching bits.

        The bits of one picture fail together, so Student's interval over pictures is used; where hardly any bit fails
        it is too narrow, so the exact one over bits is the least. With several keys and visible differences between
        them it speaks of these keys, not of all keys.
        """
        counts = self.counts
        exact = clopper_pearson(int(counts.sum()), counts.size * self.bits, confidence)
        if counts.size < 2:
            return exact
        error = float(counts.std(ddof=1)) / self.bits / math.sqrt(counts.size)
        half = float(stats.t.ppf(0.5 + confidence / 2, counts.size - 1)) * error
        return Interval(max(0.0, min(exact.low, self.accuracy - half)), min(1.0, max(exact.high, self.accuracy + half)))

    def detected(self, alpha: float) -> tuple[float, Interval]:
        """Return the share of pictures that reach the threshold of `alpha`, and its exact interval."""
        needed = threshold(self.bits, alpha)
        hits = 0 if needed is None else int((self.counts >= needed).sum())
        return hits / self.counts.size, clopper_pearson(hits, self.counts.size)

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        interval = self.accuracy_interval()
        rates = {f"{alpha:g}": self.detected(alpha) for alpha in ALPHAS}
        return {
            "attack": self.attack,
            "family": self.family,
            "measure": self.measure,
            "strength": self.strength,
            "knowledge": self.knowledge,
            "images": len(self.counts),
            "keys": len(self.matches),
            "psnr_db": self.psnr,
            "bit_accuracy": self.accuracy,
            "bit_accuracy_interval": [interval.low, interval.high],
            "bit_accuracy_per_key": self.per_key,
            "detection": {
                alpha: {"rate": rate, "interval": [bounds.low, bounds.high]} for alpha, (rate, bounds) in rates.items()
            },
        }


@torch.no_grad()
def read_matches(
    extractor: Network, images: Sequence[Image.Image], key: str, views: Sequence[View] = PLAIN
) -> tuple[int, ...]:
    """Return how many bits of every picture agree with the key; of large pictures the middle is read, as in verifying.

    With several views it is the best of them, so chance reaches more than half of the bits.

    Raises:
        ConfigError: The key is no string of 0 and 1 of the extractor's length.
    """
    if set(key) - {"0", "1"} or len(key) != extractor.bits:
        raise ConfigError(f"the key has {len(key)} characters; this extractor reads {extractor.bits} characters 0 or 1")
    device = extractor.get_buffer("mean").device
    wanted = torch.tensor([digit == "1" for digit in key], device=device)
    found = [0] * len(images)
    sizes: dict[tuple[int, int], list[int]] = {}
    middles = [_middle(image) for image in images]
    for number, image in enumerate(middles):
        sizes.setdefault(image.size, []).append(number)
    for (width, height), numbers in sizes.items():
        step = max(1, BATCH_PIXELS // (width * height))
        for start in range(0, len(numbers), step):
            part = numbers[start : start + step]
            batch = torch.stack([to_tensor(middles[number]) for number in part]).to(device)
            counts = [((read_view(extractor, batch, view) > 0) == wanted).sum(1) for view in views]
            for number, count in zip(part, torch.stack(counts).amax(0).tolist(), strict=True):
                found[number] = count
    return tuple(found)


def _middle(image: Image.Image) -> Image.Image:
    width, height = min(image.width, MAX_SIDE), min(image.height, MAX_SIDE)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def psnr(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float | None:
    """Return the mean PSNR in dB over the pictures that changed, or None when none did.

    Raises:
        ShapeError: A picture changed its size.
    """
    values = []
    for old, new in zip(before, after, strict=True):
        if old.size != new.size:
            raise ShapeError(f"PSNR compares pictures of one size, not {old.size} and {new.size}")
        error = np.square(np.asarray(old, dtype=np.float64) - np.asarray(new, dtype=np.float64)).mean()
        if error > 0:
            values.append(10 * math.log10(255**2 / error))
    return float(np.mean(values)) if values else None


def attacked(attack: Attack, strength: float, images: Sequence[Image.Image], seed: int) -> list[Image.Image]:
    """Change every picture; picture i depends on the seed, the attack, the strength and i alone."""
    return [
        attack(image, strength, stream(seed, f"attack {attack.name} {strength:g}", number))
        for number, image in enumerate(images)
    ]


def row(
    attack: Attack | SetAttack,
    strength: float,
    extractor: Network,
    key: str,
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
) -> Row:
    """Read pictures after an attack."""
    return Row(
        attack=attack.name,
        family=attack.family,
        measure=attack.measure,
        strength=float(strength),
        knowledge=attack.knowledge,
        bits=extractor.bits,
        matches=(read_matches(extractor, after, key),),
        psnr=psnr(before, after) if attack.aligned else None,
    )


def run(
    attacks: Iterable[Attack],
    images: Sequence[Image.Image],
    key: str,
    extractor: Network,
    seed: int = 0,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run attacks at all their strengths on marked pictures of one key.

    Raises:
        ShapeError: There is no picture.
        ConfigError: The key does not fit the extractor.
    """
    if not images:
        raise ShapeError("no picture to attack; give at least one")
    rows = []
    for attack in attacks:
        for strength in attack.strengths:
            after = attacked(attack, strength, images, seed)
            rows.append(row(attack, strength, extractor, key, images, after))
            if progress is not None:
                progress(rows[-1])
    return rows


def join(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Put the tables of several keys together, row by row.

    Raises:
        ShapeError: The tables are of different attacks, strengths or numbers of bits.
    """
    result = []
    for rows in zip(*tables, strict=True):
        first = rows[0]
        if {(one.attack, one.strength, one.bits) for one in rows} != {(first.attack, first.strength, first.bits)}:
            raise ShapeError(f"tables of different attacks cannot be joined, at {first.attack} {first.strength:g}")
        values = [one.psnr for one in rows if one.psnr is not None]
        result.append(
            Row(
                attack=first.attack,
                family=first.family,
                measure=first.measure,
                strength=first.strength,
                knowledge=first.knowledge,
                bits=first.bits,
                matches=tuple(key for one in rows for key in one.matches),
                psnr=float(np.mean(values)) if values else None,
            )
        )
    return result


COLUMNS = (
    "attack",
    "strength",
    "measure",
    "needs",
    "images",
    "keys",
    "PSNR, dB",
    "bit accuracy",
    "95 % interval",
    *(f"detected at {alpha:g}, 95 % interval" for alpha in ALPHAS),
)


def cells(row: Row) -> list[str]:
    """Return a row as text, in the order of `COLUMNS`."""
    interval = row.accuracy_interval()
    rates = [row.detected(alpha) for alpha in ALPHAS]
    return [
        row.attack,
        f"{row.strength:g}",
        row.measure,
        row.knowledge,
        str(len(row.counts)),
        str(len(row.matches)),
        "-" if row.psnr is None else f"{row.psnr:.1f}",
        f"{row.accuracy:.3f}",
        f"{interval.low:.3f} to {interval.high:.3f}",
        *(f"{rate:.3f}, {bounds.low:.3f} to {bounds.high:.3f}" for rate, bounds in rates),
    ]


def levels(bits: int) -> str:
    """Say what the detection thresholds are, and how often chance reaches them."""
    parts = []
    for alpha in ALPHAS:
        needed = threshold(bits, alpha)
        if needed is None:
            parts.append(f"{alpha:g}: out of reach")
        else:
            parts.append(f"{alpha:g}: {needed} matches, reached by chance with {p_value(needed, bits):.2g}")
    return f"Detection with one key of {bits} bits at false-positive rate " + "; ".join(parts) + "."


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, with what it rests on below."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    note = (
        "Intervals of detection rates are exact (Clopper-Pearson) over pictures; those of bit accuracy are Student's "
        "over pictures, at least the exact ones over bits. PSNR is the mean over pictures against the marked ones "
        "before the attack, where pixels stay in place."
    )
    return "\n".join([*lines, "", f"{levels(rows[0].bits)} {note}", ""])


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV with one number per cell."""
    buffer = io.StringIO()
    head = ["attack", "strength", "measure", "needs", "images", "keys", "psnr_db", "bit_accuracy", "low", "high"]
    for alpha in ALPHAS:
        head += [f"detected_{alpha:g}", f"low_{alpha:g}", f"high_{alpha:g}"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        interval = row.accuracy_interval()
        line = [row.attack, row.strength, row.measure, row.knowledge, len(row.counts), len(row.matches), row.psnr]
        line += [row.accuracy, interval.low, interval.high]
        for alpha in ALPHAS:
            rate, bounds = row.detected(alpha)
            line += [rate, bounds.low, bounds.high]
        writer.writerow(line)
    return buffer.getvalue()
