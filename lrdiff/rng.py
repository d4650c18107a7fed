"""Named random streams from one seed.

Every draw comes from `stream(seed, name, *index)`, so step n of a resumed run draws exactly what step n of an unbroken
run draws, and a new consumer of randomness never shifts the numbers of another.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, name: str, *index: int) -> int:
    """Return a 63-bit seed that depends on every argument: the first 8 bytes of BLAKE2b over their text form.

    Raises:
        ValueError: The name ends in "/" and a number, so it could be mistaken for a shorter name with an index.
    """
    if name.rpartition("/")[2].lstrip("-").isdigit() and "/" in name:
        raise ValueError(f"stream name {name!r} ends in a number; give the number as index")
    text = "/".join([str(int(seed)), name, *(str(int(i)) for i in index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int, name: str, *index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return an independent generator for (seed, name, index).

    Args:
        seed: The run's seed, any integer.
        name: What the numbers are for, for example "noise".
        index: Position inside the stream, for example the step.
        device: Where the generator lives. Numbers drawn on different devices differ; draw on the CPU and move when
            results must not depend on the device.
    """
    return torch.Generator(device=device).manual_seed(derive(seed, name, *index))
