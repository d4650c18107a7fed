"""A saved adapter with its anchors, put on the generator that it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from lrdiff.artifact import Artifact
from lrdiff.errors import ArtifactError
from lrdiff.triplane.cameras import look_at
from lrdiff.triplane.generator import TriplaneGenerator
from lrdiff.triplane.inversion import Anchors
from lrdiff.triplane.lora import LoraConfig, Personal

ADAPTER, COMPONENT = "triplane_lora", "triplane"
ANCHORS, CAMERAS = "anchors.ws", "anchors.cameras"


def orbit(generator: TriplaneGenerator, angles: Tensor) -> Tensor:
    """Return cameras [B, 25] around a generator's pivot at yaw and pitch [B, 2]."""
    own = generator.config
    return look_at(angles[:, 0], angles[:, 1], own.radius, own.focal, own.pivot)


def wear(generator: TriplaneGenerator, base: str, artifact: Artifact) -> tuple[Personal, Anchors]:
    """Put a saved adapter on its generator.

    Args:
        generator: Without adapter.
        base: Its fingerprint.
        artifact: What a run left behind.

    Raises:
        ArtifactError: The file is another kind of adapter, or belongs to another generator.
    """
    header = artifact.header
    if header.adapter != ADAPTER:
        raise ArtifactError(f"this is a {header.adapter} adapter, not one of a 3D head; give the run of a 3D head")
    if header.base_fingerprint != base:
        raise ArtifactError(
            f"made for generator {header.base_fingerprint[:12]} ({header.base_model}), not for {base[:12]}; "
            "give the generator that it was trained on"
        )
    tensors = dict(artifact.tensors)
    missing = [name for name in (ANCHORS, CAMERAS) if name not in tensors]
    if missing:
        raise ArtifactError(f"holds no {' and no '.join(missing)}; train it again")
    ws, cameras = tensors.pop(ANCHORS), tensors.pop(CAMERAS)
    personal = Personal(generator, LoraConfig(**header.config))
    try:
        personal.load(tensors)
    except ArtifactError:
        personal.remove()
        raise
    return personal, Anchors(ws=ws, cameras=cameras, psnr=torch.full((len(ws),), float("nan")))
