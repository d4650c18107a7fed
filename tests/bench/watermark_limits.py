"""What the watermark on `toys` does not stand: attackers with the model's files, many pictures, or the extractor.

python -m tests.bench.watermark_limits [--images 100] [--tune-steps 0 10 30 100 300]

Uses the latents and the first two decoders of `watermark_robustness`, or makes them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

from lrdiff import backbones
from lrdiff.images import to_tensor
from lrdiff.watermark import attack_report, model_attacks
from lrdiff.watermark.attack_report import Row
from lrdiff.watermark.attacks import SUITE
from lrdiff.watermark.verifier import DEFAULT, open_extractor
from tests.bench import watermark_material as material
from tests.bench.result import write


def main(arguments: list[str]) -> int:
    """Measure, print, write `watermark_limits.json`."""
    given = _given(arguments)
    torch.set_num_threads(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    backbone = backbones.load(given.model)
    file = given.extractor or DEFAULT
    extractor = open_extractor(file)
    latents = material.generated(backbone, given.images, given.steps, given.guidance)
    settings = json.loads(given.settings)
    first, second = (material.marked(number, extractor, file, backbone.path, settings) for number in (0, 1))
    pictures = material.decoded(backbone, first.vae, latents)
    clean = torch.stack([to_tensor(image) for image in material.scenes(given.scenes)])
    rows = attack_report.run(SUITE[:1], pictures, first.key, extractor)
    attacks = [
        model_attacks.reencode(backbone.vae),
        model_attacks.overwrite(backbone.vae, second.vae),
        model_attacks.average(tuple(count for count in model_attacks.COUNTS if count <= len(pictures))),
        model_attacks.overwrite_pixels(extractor, second.key),
        model_attacks.swap(backbone.vae),
        model_attacks.fine_tune(backbone.vae, first.vae, clean, steps=tuple(given.tune_steps), lr=given.tune_rate),
    ]
    for attack in attacks:
        # Twenty steps of gradient for every picture: a few are enough to see that nothing is left.
        few = pictures[: given.few] if attack.name == "overwrite-pixels" else pictures
        for strength in attack.strengths:
            rows.append(attack_report.row(attack, strength, extractor, first.key, few, attack(few, strength)))
            _show(rows[-1])
    table = [_line(row) for row in rows]
    note = (
        f"{given.images} generated pictures of one key ({given.few} for overwrite-pixels); the decoder was tuned with "
        f"AdamW at {given.tune_rate:g} on {given.scenes} rendered scenes, four a step. Attackers with latents are "
        "given those that the encoder finds in the marked pictures. Intervals as in the table of robustness. None of "
        "the last three can be defended: keep the extractor secret, and publish only the merged decoder."
    )
    command = " ".join(["python -m tests.bench.watermark_limits", *arguments])
    details = {"extractor_sha256": extractor.sha256(), "rows": [row.record() for row in rows]}
    columns = ["attack", "strength", "needs", "PSNR, dB", "bit accuracy", "95 % interval", "detected at 1e-6"]
    write("watermark_limits", command, columns, table, note, details)
    return 0


def _given(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watermark_limits", description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--few", type=int, default=24)
    parser.add_argument("--scenes", type=int, default=200, help="unmarked pictures to tune the decoder on")
    parser.add_argument("--tune-steps", type=int, nargs="+", default=[0, 10, 30, 100, 300])
    parser.add_argument("--tune-rate", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps of a picture")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--settings", default="{}", help="of the training runs, as JSON over the defaults")
    parser.add_argument("--model", default="toys")
    parser.add_argument("--extractor", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def _line(row: Row) -> list[str | float]:
    interval = row.accuracy_interval()
    rate, bounds = row.detected(1e-6)
    return [
        row.attack,
        "-" if row.attack == "none" else f"{row.strength:g} {row.measure}",
        row.knowledge,
        "-" if row.psnr is None else f"{row.psnr:.1f}",
        round(row.accuracy, 4),
        f"{interval.low:.3f} to {interval.high:.3f}",
        f"{rate:.3f} ({bounds.low:.3f} to {bounds.high:.3f})",
    ]


def _show(row: Row) -> None:
    print(*_line(row), sep="  ", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
