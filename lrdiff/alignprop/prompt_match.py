"""Prompt match on the toy world: a probe reads what a caption of that world names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from lrdiff.errors import DataError
from lrdiff.probe import Probe
from lrdiff.world.captions import PLACE_PHRASES, RELATION_PHRASES
from lrdiff.world.toys import ATTRIBUTES


def named(prompt: str) -> dict[str, int]:
    """Return the attributes of the main object, and the place, that a caption of the toy world names.

    Raises:
        DataError: It names none, so it is no such caption.
    """
    text = f" {prompt.lower()} "
    found = {}
    for place, phrases in PLACE_PHRASES.items():
        for phrase in phrases:
            if f" {phrase} " in text:
                found["place"] = ATTRIBUTES["place"].index(place)
                text = text.replace(f" {phrase} ", " ")
    for phrase in RELATION_PHRASES.values():
        text = text.partition(f" {phrase} ")[0]
    words = re.findall(r"[a-z]+", text)
    for name, values in ATTRIBUTES.items():
        known = [word for word in words if word in values]
        if known and name != "place":
            found[name] = values.index(known[-1])
    if not found:
        raise DataError(f"prompt {prompt!r} names nothing that a probe reads; prompt match is for captions of toys")
    return found


class PromptMatch:
    """Reward: the mean log probability of what the prompt names, `mean_a log p(value_a | image)`, at most 0."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return [B] scores of images [B, 3, H, W] in [0, 1]."""
        logits = self.probe.attributes(images * 2 - 1)
        rows = [
            torch.stack([logits[name][row].log_softmax(0)[value] for name, value in named(prompt).items()]).mean()
            for row, prompt in enumerate(prompts)
        ]
        return torch.stack(rows)


@torch.no_grad()
def share_right(probe: Probe, images: Tensor, prompts: Sequence[str]) -> float:
    """Return the share of named attributes that a probe reads right, for images [B, 3, H, W] in [0, 1]."""
    logits = probe.attributes(images * 2 - 1)
    right = [
        float(logits[name][row].argmax()) == value
        for row, prompt in enumerate(prompts)
        for name, value in named(prompt).items()
    ]
    return sum(right) / len(right)
