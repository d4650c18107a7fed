"""How often unmarked pictures pass for marked ones.

python -m tests.bench.watermark_false_positives [--photos DIR] [--crops 20000] [--keys 1000]

Two questions are asked, and they need different intervals.

1. Is the test as strict as it says, for a key drawn at random? Every crop is compared with a key of its own. Given the
   pictures, each outcome is then a coin of its own, also for many crops of one photo: trials are independent, and the
   exact (Clopper-Pearson) interval is right. K of n matches is a whole number, so no test reaches 1 % exactly: the
   observed rate is held against the level of the threshold, and the randomised test, which breaks ties by chance,
   against the nominal rate itself. This holds whatever the extractor does; it tests the arithmetic and the keys.
2. Does every key that stays the same do as well? Here the extractor's bits must be fair and independent over pictures.
   Many random keys are each compared with all crops. Crops of one picture are alike, so the spread over keys is
   compared with what as many independent pictures would give, counting one crop of each picture.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from lrdiff import backbones
from lrdiff.images import to_tensor
from lrdiff.rng import derive, stream
from lrdiff.watermark import soft
from lrdiff.watermark.reading import Network
from lrdiff.watermark.statistics import clopper_pearson, p_value, threshold
from lrdiff.watermark.verifier import DEFAULT, open_extractor
from tests.bench import watermark_material as material
from tests.bench.result import write

ALPHAS = (1e-2, 1e-3)
RELATED = 1.5
"""Rates that spread over keys by more than this many times what fair, independent bits give are pointed out."""
SIDES = (64, 80, 96, 112, 128)
SEED = 11


@dataclass(frozen=True)
class Crops:
    """What was read in crops of one kind of unmarked pictures.

    Attributes:
        kind: What they are.
        logits: [N, bits].
        source: Number of the picture that each crop is from, [N].
    """

    kind: str
    logits: NDArray[np.float64]
    source: NDArray[np.int64]


def main(arguments: list[str]) -> int:
    """Measure, print, write `watermark_false_positives.json`."""
    given = _given(arguments)
    torch.set_num_threads(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    extractor = open_extractor(given.extractor or DEFAULT)
    sets = gather(given)
    share = given.crops / len(sets)
    kinds = [read_crops(kind, images, math.ceil(share / len(images)), extractor) for kind, images in sets.items()]
    all_kinds = Crops(
        "all together",
        np.concatenate([crops.logits for crops in kinds]),
        np.concatenate([crops.source + 10**6 * number for number, crops in enumerate(kinds)]),
    )
    rows: list[list[Any]] = []
    details: dict[str, Any] = {"extractor_sha256": extractor.sha256()}
    for crops in [*kinds, all_kinds]:
        found = own_keys(crops)
        fixed = fixed_keys(crops, given.keys)
        details[crops.kind] = {"own_keys": found, "fixed_keys": fixed, "soft": soft_test(crops)}
        rows += [line(crops, one, other) for one, other in zip(found, fixed, strict=False)]
    for row in rows:
        print(*row, sep="  ")
    calibrated = getattr(extractor.calibration, "images", {})
    details["calibrated_on"] = calibrated
    return _finish(arguments, given, rows, details)


def _given(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watermark_false_positives", description=__doc__)
    parser.add_argument("--crops", type=int, default=20000, help="in all, at least")
    parser.add_argument("--keys", type=int, default=1000, help="random keys for the second question")
    parser.add_argument("--scenes", type=int, default=2000, help="rendered scenes")
    parser.add_argument("--outputs", type=int, default=1000, help="pictures generated without a mark")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps of a picture")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--photos", type=Path, help="folder of photos; left out without it")
    parser.add_argument("--model", default="toys")
    parser.add_argument("--extractor", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def gather(given: argparse.Namespace) -> dict[str, list[Image.Image]]:
    """Return unmarked pictures of every kind."""
    found = {"rendered scenes": material.scenes(given.scenes)}
    if given.photos is None:
        print("photos are left out: no --photos was given", flush=True)
    else:
        found["photos"] = material.photos(given.photos)
    backbone = backbones.load(given.model)
    latents = material.generated(backbone, given.outputs, given.steps, given.guidance)
    found["unmarked outputs"] = material.decoded(backbone, backbone.vae, latents)
    return found


@torch.no_grad()
def read_crops(kind: str, images: Sequence[Image.Image], each: int, extractor: Network) -> Crops:
    """Read `each` random crops of every picture: a random window, for larger pictures scaled to at most 128 px."""
    by_side: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for number, image in enumerate(images):
        for index in range(each):
            crop = cut(image, stream(derive(SEED, kind), "crop", number, index))
            by_side.setdefault(crop.width, []).append((number, to_tensor(crop)))
    device = extractor.get_buffer("mean").device
    logits, source = [], []
    for crops in by_side.values():
        for start in range(0, len(crops), 64):
            part = crops[start : start + 64]
            logits.append(extractor(torch.stack([crop for _, crop in part]).to(device)).double().cpu().numpy())
            source += [number for number, _ in part]
    return Crops(kind, np.concatenate(logits), np.array(source))


def cut(image: Image.Image, rng: torch.Generator) -> Image.Image:
    """Return a random square window with one of a few sides."""
    a, b, c, x, y = torch.rand(5, generator=rng).tolist()
    side = SIDES[int(a * len(SIDES))]
    short = min(image.size)
    # Half of the crops of a large picture are cut as they are, half are scaled from a larger window.
    window = side if b < 0.5 else side + round(c * (short - side))
    left, top = round(x * (image.width - window)), round(y * (image.height - window))
    crop = image.crop((left, top, left + window, top + window))
    return crop if window == side else crop.resize((side, side), Image.Resampling.BICUBIC)


def _random_keys(count: int, bits: int, name: str) -> NDArray[np.bool_]:
    return np.random.default_rng(derive(SEED, name)).integers(0, 2, (count, bits)).astype(bool)


def own_keys(crops: Crops) -> list[dict[str, Any]]:
    """Compare every crop with a random key of its own."""
    count, bits = crops.logits.shape
    matches = ((crops.logits > 0) == _random_keys(count, bits, f"own keys {crops.kind}")).sum(1)
    ties = np.random.default_rng(derive(SEED, f"ties {crops.kind}")).random(count)
    found = []
    for alpha in ALPHAS:
        needed = threshold(bits, alpha)
        assert needed is not None
        level, chance = p_value(needed, bits), float(stats.binom.pmf(needed - 1, bits, 0.5))
        fired = int((matches >= needed).sum())
        # At one match less the randomised test fires as often as is left of alpha.
        lucky = fired + int(((matches == needed - 1) & (ties < (alpha - level) / chance)).sum())
        exact, nominal = clopper_pearson(fired, count), clopper_pearson(lucky, count)
        found.append(
            {
                "alpha": alpha,
                "threshold": needed,
                "level": level,
                "trials": count,
                "fired": fired,
                "rate": fired / count,
                "interval": [exact.low, exact.high],
                "holds": level in exact,
                "randomised_fired": lucky,
                "randomised_rate": lucky / count,
                "randomised_interval": [nominal.low, nominal.high],
                "randomised_holds": alpha in nominal,
            }
        )
    return found


def fixed_keys(crops: Crops, keys: int) -> list[dict[str, Any]]:
    """Compare every one of many random keys with all crops; the spread over keys shows unfair or related bits."""
    _, bits = crops.logits.shape
    read = np.where(crops.logits > 0, 1, -1).astype(np.int32)
    table = np.where(_random_keys(keys, bits, "fixed keys"), 1, -1).astype(np.int32)
    matches = (bits + read @ table.T) // 2
    _, first = np.unique(crops.source, return_index=True)
    found = []
    for alpha in (*ALPHAS, 1e-6):
        needed = threshold(bits, alpha)
        assert needed is not None
        level = p_value(needed, bits)
        rates, single = (matches >= needed).mean(0), (matches[first] >= needed).mean(0)
        expected = float(np.sqrt(level * (1 - level) / len(first)))
        found.append(
            {
                "alpha": alpha,
                "level": level,
                "keys": keys,
                "mean_rate": float(rates.mean()),
                "worst_rate": float(rates.max()),
                "rate_of_95_percent_of_keys_at_most": float(np.quantile(rates, 0.95)),
                "one_crop_each": len(first),
                "spread_over_keys": float(single.std(ddof=1)),
                "spread_of_independent_fair_bits": expected,
            }
        )
    return found


def soft_test(crops: Crops, most: int = 2000) -> list[dict[str, Any]]:
    """Count how often the sign-flip test fires with keys of their own, on at most `most` crops."""
    chosen = np.random.default_rng(derive(SEED, "soft")).permutation(len(crops.logits))[:most]
    keys = _random_keys(len(crops.logits), crops.logits.shape[1], f"soft keys {crops.kind}")
    values = np.array([soft.p_value(crops.logits[at], keys[at].astype(int).tolist()) for at in chosen])
    found = []
    for alpha in ALPHAS:
        fired = int((values <= alpha).sum())
        bounds = clopper_pearson(fired, len(values))
        found.append(
            {"alpha": alpha, "trials": len(values), "fired": fired, "interval": [bounds.low, bounds.high]}
            | {"holds": alpha in bounds}
        )
    return found


def line(crops: Crops, found: dict[str, Any], fixed: dict[str, Any]) -> list[Any]:
    """Return a row of the README's table."""
    low, high = found["interval"]
    random_low, random_high = found["randomised_interval"]
    return [
        crops.kind,
        len(np.unique(crops.source)),
        found["trials"],
        f"{found['alpha']:g}",
        f"{found['level']:.2e}",
        f"{found['rate']:.2e}",
        f"{low:.2e} to {high:.2e}",
        f"{found['randomised_rate']:.2e}",
        f"{random_low:.2e} to {random_high:.2e}",
        "yes" if found["holds"] and found["randomised_holds"] else "no",
        f"{fixed['mean_rate']:.2e}",
        f"{fixed['worst_rate']:.2e}",
        f"{fixed['spread_over_keys'] / fixed['spread_of_independent_fair_bits']:.2f}",
    ]


def _finish(arguments: list[str], given: argparse.Namespace, rows: list[list[Any]], details: dict[str, Any]) -> int:
    columns = ["unmarked pictures", "pictures", "crops", "nominal rate", "level of the threshold", "observed"]
    columns += ["95 % interval", "observed, ties by chance", "95 % interval ", "both within"]
    columns += ["fixed keys, mean", "worst key", "spread over keys, 1 is ideal"]
    fixed = {one["alpha"]: one for one in details["all together"]["fixed_keys"]}
    soft_counts = [f"{one['fired']} of {one['trials']} at {one['alpha']:g}" for one in details["all together"]["soft"]]
    related = [row[0] for row in rows if row[3] == "0.01" and float(row[-1]) > RELATED]
    note = (
        "First every crop has a random key of its own: trials are then independent given the pictures, also for many "
        "crops of one photo, and the exact intervals are right. A count of matches cannot meet a nominal rate exactly: "
        "the test itself is held against the level of its threshold, the one with ties broken by chance against the "
        f"nominal rate. Then {given.keys} random keys stay the same for all crops, which shows the extractor: with "
        "fair and independent bits all keys fire equally often. The spread is the standard deviation of their rates on "
        "one crop of each picture, against that of fair and independent bits. Mean rate of fixed keys at 1e-6: "
        f"{fixed[1e-6]['mean_rate']:.1e}, worst key {fixed[1e-6]['worst_rate']:.1e}. The soft test fired on "
        f"{' and '.join(soft_counts)}. The extractor's own calibration is on other cuts, of "
        f"{_listed(details['calibrated_on'])}."
        + (f" Bits are related or unfair on: {', '.join(related)}." if related else "")
        + ("" if given.photos else " Photos were left out: no folder was given.")
    )
    command = " ".join(
        ["python -m tests.bench.watermark_false_positives", *(_shown(word, given.photos) for word in arguments)]
    )
    write("watermark_false_positives", command, columns, rows, note, details)
    return 0


def _listed(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"


def _shown(word: str, photos: Path | None) -> str:
    """Keep the user's folder out of the record."""
    return "PHOTOS" if photos is not None and word == str(photos) else word


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
