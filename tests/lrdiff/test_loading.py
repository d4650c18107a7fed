"""Networks are loaded one at a time: diffusers changes torch.nn for all threads while it loads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lrdiff import backbones, decoders
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.verifier import DEFAULT


def test_threads_that_load_at_once_get_whole_networks(tiny_model_dir: Path) -> None:
    """Several visitors generate and verify at the same moment."""
    tasks = [
        lambda: backbones.load(tiny_model_dir),
        lambda: load(DEFAULT),
        lambda: decoders.load_vae(tiny_model_dir / "vae"),
    ]
    with ThreadPoolExecutor(8) as pool:
        found = [task.result() for task in [pool.submit(tasks[number % 3]) for number in range(36)]]
    for network in found:
        parts = [network.denoiser, network.vae] if hasattr(network, "denoiser") else [network]
        assert all(not p.is_meta and bool(p.isfinite().all()) for part in parts for p in part.parameters())
    first, *others = (network for network in found if isinstance(network, Extractor))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
