"""How good a shipped model of the toy world is.

python -m tests.bench.toys_quality [--model toys] [--count 1000] [--steps 20] [--guidance 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from lrdiff import backbones
from lrdiff.probe import load_probe
from tests.bench.result import write
from trainers.embedded import evaluate, manifest
from trainers.embedded.make import ASSETS

BAR_ACCURACY, BAR_PSNR = 0.90, 28.0


def main(arguments: list[str]) -> int:
    """Measure, print, write the result file, the picture and the manifest's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.toys_quality", description=__doc__)
    parser.add_argument("--model", default="toys")
    parser.add_argument("--count", type=int, default=1000, help="captions")
    parser.add_argument("--scenes", type=int, default=256, help="scenes for the autoencoder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    backbone = backbones.load(given.model)
    name = given.model.replace("-", "_")
    times = evaluate.seconds_per_image(backbone, steps=given.steps)
    reader = load_probe("probe-b")
    reading = evaluate.read_generated(backbone, reader, given.count, steps=given.steps, guidance=given.guidance)
    bound = evaluate.read_scenes(reader, given.count, held_out=True)
    decibel = evaluate.autoencoder_psnr(backbone, given.scenes)
    columns = 1024 // backbone.resolution
    sheet = ASSETS / "pictures" / f"{name}.png"
    captions = evaluate.contact_sheet(backbone, sheet, columns=columns, rows=columns // 2, steps=given.steps)
    rates, bounds = reading.accuracy(), bound.accuracy()
    mean = reading.mean_accuracy()
    rows = [["attributes, mean", mean, bound.mean_accuracy(), f">= {BAR_ACCURACY}"]]
    rows += [[attribute, rate, bounds[attribute], ""] for attribute, rate in rates.items()]
    rows += [["pattern, where named", reading.named_pattern_accuracy(), bound.named_pattern_accuracy(), ""]]
    rows += [["autoencoder, PSNR in dB", decibel, None, f">= {BAR_PSNR:g}"]]
    rows += [[f"seconds per image, {given.steps} steps", statistics.median(times), None, "about 2"]]
    for row in rows:
        print(*(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row), sep="  ")
    missed = [f"attribute accuracy {mean:.3f} < {BAR_ACCURACY}"] if mean < BAR_ACCURACY else []
    missed += [f"PSNR {decibel:.1f} dB < {BAR_PSNR:g} dB"] if decibel < BAR_PSNR else []
    print("missed: " + ("; ".join(missed) or "nothing"))
    note = (
        f"{given.count} captions of attribute combinations that no training scene shows, read by probe-b, "
        f"which took no part in training or choosing; guidance {given.guidance:g}. "
        + (f"Missed: {'; '.join(missed)}." if missed else "")
    )
    details = {
        "rendered_scenes_for_psnr": given.scenes,
        "seconds": times,
        "worst": {attribute: reading.worst(attribute) for attribute in rates},
        "sheet": captions,
        "steps": given.steps,
        "guidance": given.guidance,
    }
    command = " ".join(["python -m tests.bench.toys_quality", *arguments])
    write(f"{name}_quality", command, ["", "generated", "rendered", "bar"], rows, note.strip(), details)
    figures = {
        "captions": given.count,
        "attribute_accuracy": mean,
        **{f"accuracy_{attribute}": rate for attribute, rate in rates.items()},
        "psnr_db": decibel,
        "seconds_per_image": statistics.median(times),
    }
    manifest.set_quality(ASSETS, given.model, evaluate.rounded(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
