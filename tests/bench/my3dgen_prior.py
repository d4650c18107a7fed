"""How good the shipped generator `heads` is, on heads that it has not seen, with known latents.

python -m tests.bench.my3dgen_prior [--count 32]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional

from lrdiff.assets import ASSETS
from lrdiff.images import to_image
from lrdiff.rng import stream
from lrdiff.sheet import sheet
from lrdiff.triplane.cameras import split_camera
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.losses import psnr
from lrdiff.triplane.orbits import normal_picture
from lrdiff.triplane.personal import orbit
from lrdiff.triplane.store import find, load
from lrdiff.world.heads import LATENT, heads
from lrdiff.world.heads_render import HeadView
from lrdiff.world.heads_render import orbit as photograph
from tests.bench.result import write
from trainers.embedded import manifest
from trainers.embedded.heads import compare

SEED = 1001
BAR = 26.0
"""PSNR in dB that a generator trained on a GPU should reach."""
COLUMNS = 8


def main(arguments: list[str]) -> int:
    """Measure, print, write `my3dgen_prior.json`, the picture and the manifest's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.my3dgen_prior", description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="unseen heads, one view of each")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    generator = load(find("heads"))
    rng = stream(SEED, "prior")
    z = torch.randn(given.count, LATENT, generator=rng)
    angles = (torch.rand(given.count, 2, generator=rng) * 2 - 1) * torch.tensor([1.2, 0.4])
    meant = photograph(heads(z), angles[:, 0], angles[:, 1], generator.config.render.side)
    found = compare(generator, z, angles, meant)
    turned = normal_error(generator, z, angles, meant)
    begin = time.process_time()
    with torch.no_grad():
        generator.view(generator.mapping(z[:1]), orbit(generator, angles[:1]))
    seconds = time.process_time() - begin
    finished = draw(generator, z, angles)
    rows = [
        ["PSNR at 64 px, dB", found["psnr_unseen"], f">= {BAR:g}, trained on a GPU"],
        [f"PSNR at 128 px of {COLUMNS} of them, dB", finished, ""],
        ["depth error, of a head 0.9 high", found["depth_unseen"], ""],
        ["silhouette, mean absolute error", found["mask_unseen"], ""],
        ["specks: pixels beside the head that are not empty, %", 100 * found["specks_unseen"], ""],
        ["normals, median angle in degrees", turned, ""],
        ["processor seconds per picture", seconds, ""],
    ]
    for row in rows:
        print(*(f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row), sep="  ")
    minutes = float(manifest.read(ASSETS)["heads"]["seconds"]) / 60
    manifest.set_quality(ASSETS, "heads", {"psnr_unseen": found["psnr_unseen"], "depth_unseen": found["depth_unseen"]})
    write(
        "my3dgen_prior",
        "python -m tests.bench.my3dgen_prior",
        ["unseen heads, known latents", "heads", "bar"],
        rows,
        f"{given.count} heads, one view of each, {generator.config.render.side} px, yaw to 1.2 and pitch to 0.4. "
        f"The shipped generator learned for {minutes:.0f} minutes of one core. Other programs ran.",
    )
    return 0


@torch.no_grad()
def normal_error(generator: TriplaneGenerator, z: Tensor, angles: Tensor, meant: HeadView) -> float:
    """Return the median angle in degrees between normals taken from depths and exact ones, where both see the head."""
    apart = []
    for n in range(len(z)):
        camera = orbit(generator, angles[n : n + 1])
        view = generator.view(generator.mapping(z[n : n + 1]), camera)
        pose, _ = split_camera(camera)
        made = normal_picture(view, camera)
        exact = meant.normal[n : n + 1].permute(0, 2, 3, 1) @ pose[:, None, :3, :3] * torch.tensor([1.0, -1.0, -1.0])
        where = (meant.mask[n : n + 1] > 0) & (view.opacity > 0.5)
        cosine = functional.cosine_similarity(made, exact.permute(0, 3, 1, 2), dim=1)[:, None]
        apart.append(cosine[where].clamp(-1, 1).acos().rad2deg())
    return float(torch.cat(apart).median())


@torch.no_grad()
def draw(generator: TriplaneGenerator, z: Tensor, angles: Tensor) -> float:
    """Write a sheet: what is meant, what the generator draws of it, and new heads from all sides.

    Returns:
        The mean PSNR in dB of the finished pictures.
    """
    yaw, pitch = angles[:COLUMNS].T
    meant = photograph(heads(z[:COLUMNS]), yaw, pitch, generator.config.side)
    cameras = orbit(generator, angles[:COLUMNS])
    made = generator.view(generator.mapping(z[:COLUMNS]), cameras).image
    other = torch.randn(COLUMNS, LATENT, generator=stream(SEED, "sheet"))
    around = orbit(generator, torch.stack([torch.linspace(-1, 1, COLUMNS), torch.zeros(COLUMNS)], 1))
    drawn = generator.view(generator.mapping(other), around).image
    rows = [[to_image(image.clamp(-1, 1)) for image in row] for row in (meant.image, made, drawn)]
    page = sheet(rows, ["meant", "made", "drawn"], [""] * COLUMNS)
    page.save(ASSETS / "pictures" / "heads.png", optimize=True)
    return float(psnr(made, meant.image).mean())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
