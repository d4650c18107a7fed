"""From what was asked for to rewards that can be computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from lrdiff.alignprop.objective import Reward
from lrdiff.alignprop.prompt_match import PromptMatch
from lrdiff.alignprop.ratings import Ratings
from lrdiff.alignprop.rewards import SIMPLE, likeness, palette
from lrdiff.alignprop.specs import Spec
from lrdiff.errors import ConfigError, DataError
from lrdiff.images import to_tensor
from lrdiff.probe import load_probe


def build(spec: Spec, device: torch.device) -> Reward:
    """Return a reward, with whatever network it has on `device`, frozen.

    Raises:
        LrdiffError: A file, model or colour cannot be used.
    """
    if spec.name in SIMPLE:
        return _plain(SIMPLE[spec.name])
    if spec.name == "likeness":
        return _plain(likeness(_picture(Path(spec.argument))))
    if spec.name == "palette":
        return _plain(palette(colours(spec.argument)))
    if spec.name == "prompt-match":
        return PromptMatch(load_probe(spec.argument).to(device))
    if spec.name == "ratings":
        return Ratings.load(Path(spec.argument), device)
    from lrdiff.alignprop.clip import Aesthetic, Clip, ClipScore  # imports transformers' CLIP

    folder, _, head = spec.argument.partition(",")
    clip = Clip(folder, device)
    return Aesthetic(clip, Path(head)) if head else ClipScore(clip, scaled=spec.name == "pickscore")


def colours(text: str) -> torch.Tensor:
    """Read "#rrggbb,#rrggbb" as [N, 3] in [0, 1]."""
    parts = text.split(",")
    wrong = [part for part in parts if not re.fullmatch(r"#[0-9a-fA-F]{6}", part)]
    if wrong:
        raise ConfigError(f"reward palette: {wrong[0]!r} is no colour; write it as #rrggbb, for example #ff8800")
    return torch.tensor([[int(part[at : at + 2], 16) / 255 for at in (1, 3, 5)] for part in parts])


def _plain(measure: Callable[[torch.Tensor], torch.Tensor]) -> Reward:
    """Return a reward that does not look at prompts."""
    return lambda images, prompts: measure(images)


def _picture(path: Path) -> torch.Tensor:
    try:
        with Image.open(path) as image:
            return to_tensor(image.convert("RGB")) / 2 + 0.5
    except OSError as error:
        raise DataError(f"reward likeness: {path} cannot be read as a picture ({error})") from error
