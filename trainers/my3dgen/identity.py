"""The network that knows people: whether photos show one person, and identity in losses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrdiff.assets import MODELS
from lrdiff.probe import load_probe
from lrdiff.triplane.arcface import load_arcface
from lrdiff.triplane.people import two_groups

log = logging.getLogger(__name__)

PROBE = "heads-probe-a"
"""Takes part in a loss; heads-probe-b only measures."""
PROBE_APART = 0.65
"""Groups of photos with a lower mean cosine of the probe count as two people. Pairs of unseen people have 0.95 (one
person) and 0.00 (two) on average: the table "Who is who". Sets of ten, split where they are least alike, had 0.86 and
more when all were of one person, and 0.48 and less with one or four of another (12 sets of each); this lies between."""
ARCFACE_APART = 0.2
"""The same of a user's ArcFace, on photos that are not aligned. Not measured, for there are no weights here: aligned
faces are usually taken for one person's above 0.3, and those of two people lie around 0."""
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """A network that knows people.

    Attributes:
        name: For messages.
        network: Frozen.
        embed: [B, 3, H, W] in [-1, 1] -> unit vectors [B, D], with gradients.
        apart: Mean cosine below which two groups of photos count as two people.
    """

    name: str
    network: nn.Module
    embed: Callable[[Tensor], Tensor]
    apart: float


def load_identity(arcface: Path | None, device: torch.device) -> Identity:
    """Return the user's ArcFace, or else the shipped network of procedural heads.

    Raises:
        ConfigError: The file of weights cannot be used.
        ModelError: The shipped network is absent.
    """
    if arcface is not None:
        face = load_arcface(arcface).to(device)
        return Identity(f"ArcFace of {arcface.name}", face, face.identity, ARCFACE_APART)
    probe = load_probe(PROBE).to(device)
    return Identity(PROBE, probe, probe.identity, PROBE_APART)


def knows(arcface: Path | None, generator: Path) -> bool:
    """Return whether a network's word on photos means anything: the shipped one knows only what shipped ones draw."""
    return arcface is not None or generator.parent == MODELS


@torch.no_grad()
def check_person(photos: Tensor, names: list[str], identity: Identity) -> str:
    """Say whether photos show one person, and warn of the smaller group where they seem to show two.

    Args:
        photos: [N, 3, S, S] in [-1, 1].
        names: Their file names.
        identity: What compares them.

    Returns:
        A line for the preflight.
    """
    if len(photos) < 2:
        return "people: one photo, nothing to compare"
    device = next(identity.network.parameters()).device
    vectors = torch.cat([identity.embed(part.to(device)) for part in photos.split(AT_ONCE)])
    others, alike = two_groups(vectors)
    if alike >= identity.apart:
        return f"people: all photos seem to show one person ({alike:.2f} between the least alike, {identity.name})"
    files = ", ".join(names[number] for number in others)
    found = (
        f"the photos seem to show two people: {files} differ from the other {len(names) - len(others)} (mean cosine "
        f"{alike:.2f}; of one person {identity.apart:g} or more; {identity.name})"
    )
    log.warning("data.images: %s; a model of both is neither of them: take out one person's", found)
    return f"people: {found}"
