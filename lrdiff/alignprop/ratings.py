"""A reward learned from the user's own ratings: a linear head on frozen features of pictures.

From scores s_i of pictures with standardised features f_i, ridge regression:

    min_w  sum_i (w . f_i + b - s_i)^2 + strength |w|^2

From pairs of a better and a worse picture, the model of Bradley and Terry:

    min_w  - sum_i log sigmoid(w . (f_better - f_worse)) + strength |w|^2
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from lrdiff.errors import DataError, ModelError
from lrdiff.files import write_bytes
from lrdiff.images import to_tensor
from lrdiff.probe import load_probe

Features = Callable[[Tensor], Tensor]


class Ratings:
    """Reward: `w . (f - mean) / std + b` of a picture's features f."""

    def __init__(self, name: str, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Take the features' name and the fitted numbers."""
        self.name, self.tensors = name, {key: value.to(device) for key, value in tensors.items()}
        self.features = features(name, device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return [B] scores of images [B, 3, H, W] in [0, 1]."""
        own = self.tensors
        return (self.features(images) - own["mean"]) / own["std"] @ own["weight"] + own["bias"]

    def save(self, path: Path) -> None:
        """Write the head."""
        tensors = {key: value.cpu().contiguous() for key, value in self.tensors.items()}
        write_bytes(path, save(tensors, {"features": self.name}))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Ratings:
        """Read a head. Raises `ModelError` when it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                name = (file.metadata() or {})["features"]
                tensors = {key: file.get_tensor(key) for key in ("mean", "std", "weight", "bias")}
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as a head of ratings ({error}); train it again") from error
        return cls(name, tensors, device)


def features(name: str, device: torch.device) -> Features:
    """Return frozen features of images [B, 3, H, W] in [0, 1]: of a probe, or of a CLIP model's folder."""
    if name.startswith("probe-"):
        probe = load_probe(name).to(device)
        return lambda images: probe.features(images * 2 - 1)
    from lrdiff.alignprop.clip import Clip

    return Clip(name, device).images


def train(file: Path, name: str, strength: float = 1.0) -> Ratings:
    """Fit a head to a CSV file with the columns file,score or better,worse; files are relative to it.

    Args:
        file: The ratings.
        name: Of the features: "probe-a", or a CLIP model's folder.
        strength: Of the penalty on the weights.

    Raises:
        DataError: The file has other columns, too few rows, a score that is no number, or a picture is unreadable.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    kinds = {frozenset(("file", "score")), frozenset(("better", "worse"))}
    if len(rows) < 2 or frozenset(rows[0]) not in kinds:
        raise DataError(f"{file}: needs the columns file,score or better,worse and at least two rows")
    pairs = "better" in rows[0]
    columns = ("better", "worse") if pairs else ("file",)
    read = features(name, torch.device("cpu"))
    with torch.no_grad():
        found = {
            column: torch.cat([read(_picture(file.parent / row[column], file)) for row in rows]) for column in columns
        }
    every = torch.cat(list(found.values())).double()
    mean, std = every.mean(0), every.std(0).clamp(min=1e-6)
    scaled = {column: (value.double() - mean) / std for column, value in found.items()}
    if pairs:
        weight, bias = bradley_terry(scaled["better"] - scaled["worse"], strength), torch.zeros(())
    else:
        weight, bias = ridge(scaled["file"], _scores(rows, file), strength)
    tensors = {"mean": mean, "std": std, "weight": weight, "bias": bias}
    return Ratings(name, {key: value.float() for key, value in tensors.items()}, torch.device("cpu"))


def ridge(features: Tensor, scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return weight [D] and bias [] of ridge regression; the features [N, D] have mean 0."""
    bias = scores.mean()
    gram = features.T @ features + strength * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(gram, features.T @ (scores - bias)), bias


def bradley_terry(differences: Tensor, strength: float) -> Tensor:
    """Return the weight [D] under which differences [N, D], better minus worse, are most likely positive."""
    weight = torch.zeros(differences.shape[1], dtype=differences.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -F.logsigmoid(differences @ weight).sum() + strength * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach()


def _scores(rows: Sequence[dict[str, str]], file: Path) -> Tensor:
    try:
        scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: a score is no number ({error})") from error
    if not bool(torch.isfinite(scores).all()):
        raise DataError(f"{file}: a score is NaN or infinite")
    return scores


def _picture(path: Path, file: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return to_tensor(image.convert("RGB"))[None] / 2 + 0.5
    except OSError as error:
        raise DataError(f"{file}: {path} cannot be read as a picture ({error})") from error
