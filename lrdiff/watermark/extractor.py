"""The extractor: a fully convolutional network that reads bits from a picture of any size, and its file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import Tensor, nn

from lrdiff.errors import ModelError, ShapeError
from lrdiff.files import write_bytes
from lrdiff.loading import alone
from lrdiff.watermark.calibration import Calibration, measure

FORMAT = 1
KEY = "lrdiff_extractor"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEAK = 0.2
"""Singular value of the head, as a share of the median one, below which a direction counts as not read."""


class Extractor(nn.Module):
    """Blocks of Conv3x3, BatchNorm, GELU, a global mean, a linear layer, then fixed whitening.

    The class of network of HiDDeN and Stable Signature (arXiv 2303.15435): 291,456 parameters at 48 bits.

    Differs from the paper: blocks may have strides, which makes the network many times faster and lets it see further
    with the same parameters; without them it is the paper's. Whitening divides the scatter by the number of images, so
    logits have unit variance times a gain set on purpose; it is symmetric (W = C^-1/2), so every bit stays as near as
    possible to its trained meaning.

    Attributes:
        calibration: Measured behaviour on unmarked images, or None.
        gain: Standard deviation of a whitened logit.
    """

    def __init__(self, bits: int = 48, width: int = 64, depth: int = 8, strides: Sequence[int] | None = None) -> None:
        """Build with random weights.

        Args:
            bits: Bits to read.
            width: Channels.
            depth: Blocks before the one that makes one channel of each bit.
            strides: Of every block, depth + 1 numbers; none means 1 everywhere, as in the paper.

        Raises:
            ShapeError: A number is below one, or there are not as many strides as blocks.
        """
        super().__init__()
        if min(bits, width, depth) < 1:
            raise ShapeError(f"extractor of {bits} bits, width {width}, depth {depth}: each must be at least 1")
        self.bits, self.width, self.depth = bits, width, depth
        self.strides = (1,) * (depth + 1) if strides is None else tuple(strides)
        if len(self.strides) != depth + 1 or min(self.strides) < 1:
            raise ShapeError(f"strides {self.strides} of an extractor: give {depth + 1} numbers of at least 1")
        channels = zip(itertools.pairwise([3, *[width] * depth, bits]), self.strides, strict=True)
        self.blocks = nn.Sequential(*(_block(into, out, stride) for (into, out), stride in channels))
        self.head = nn.Linear(bits, bits)
        self.register_buffer("white", torch.eye(bits))
        self.register_buffer("shift", torch.zeros(bits))
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.whitened, self.gain = False, 1.0
        self.calibration: Calibration | None = None

    def raw(self, images: Tensor) -> Tensor:
        """Return logits [B, bits] before whitening, of images [B, 3, H, W] in [-1, 1].

        Raises:
            ShapeError: The images have other axes.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ShapeError(f"an extractor reads images [B, 3, H, W], not {list(images.shape)}")
        normal = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        return self.head(self.blocks(normal).mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """Return whitened logits [B, bits]; a bit is 1 where its logit is above 0. See `raw`."""
        return (self.raw(images) - self.get_buffer("shift")) @ self.get_buffer("white").T

    @torch.no_grad()
    def directions(self) -> int:
        """Return how many independent combinations of bits the head reads; fewer than all leave bits unwritable.

        Whitening gives every combination the same variance, also one that was never learned, and blows up the little
        that is there. No decoder can be taught to write it, although before whitening each bit by itself is read well.
        """
        values = torch.linalg.svdvals(self.head.weight.float())
        return int((values > WEAK * values.median()).sum())

    @torch.no_grad()
    def whiten(
        self, images: Iterable[Tensor] | Mapping[str, Iterable[Tensor]], gain: float = 1.0, spread: float = 1.0
    ) -> None:
        """Set the last layer so that logits of these unmarked images have mean 0, no correlation, variance gain^2.

        W = gain * C^-1/2 with C = mean of the kinds' covariances + spread * covariance of the kinds' means. With a
        `spread` above 1 a direction in which the kinds differ shrinks, so that bits stay fair on each kind and not only
        on all of them together; there are fewer such directions than kinds, so little is lost.

        Args:
            images: Batches, or batches of named kinds, which all count the same however many images they have.
            gain: Standard deviation of the whitened logits, when `spread` is 1.
            spread: See above; without kinds it does nothing.

        Raises:
            ShapeError: Fewer images of a kind than bits, or `gain` is not positive, or `spread` is below 1.
            ModelError: Some combination of bits is constant on the images.
        """
        if not (gain > 0 and spread >= 1):
            raise ShapeError(f"gain {gain} and spread {spread}: give a gain > 0 and a spread of at least 1")
        self.eval()
        kinds = images if isinstance(images, Mapping) else {"unmarked": images}
        logits = [torch.cat([self.raw(batch) for batch in batches]).double() for batches in kinds.values()]
        if not logits or min(map(len, logits)) <= self.bits:
            raise ShapeError(f"{[*map(len, logits)]} images of {[*kinds]}: give more images than {self.bits} of each")
        means = torch.stack([kind.mean(0) for kind in logits])
        mean = means.mean(0)
        within = torch.stack([torch.cov(kind.T, correction=0).reshape(self.bits, -1) for kind in logits]).mean(0)
        covariance = within + spread * (means - mean).T @ (means - mean) / len(means)
        values, vectors = torch.linalg.eigh(covariance)
        if not bool(values[0] > 1e-10 * values[-1]):
            raise ModelError("the extractor's bits depend on each other on these images; use more and different images")
        self.get_buffer("white").copy_(gain * (vectors * values.rsqrt()) @ vectors.T)
        self.get_buffer("shift").copy_(mean)
        self.whitened, self.gain, self.calibration = True, gain, None

    @torch.no_grad()
    def calibrate(self, kinds: Mapping[str, Iterable[Tensor]]) -> Calibration:
        """Measure the bits on unmarked images of named kinds; the record is kept and travels in the file.

        Raises:
            ModelError: The extractor is not whitened.
            ShapeError: There are no images, or fewer than two of a kind.
        """
        if not self.whitened:
            raise ModelError("the extractor is not whitened; whiten it before calibrating")
        self.eval()
        empty = torch.empty(0, self.bits)
        logits = {name: torch.cat([empty, *map(self.forward, batches)]).double() for name, batches in kinds.items()}
        if not logits or min(map(len, logits.values())) < 2:
            raise ShapeError("fewer than two images to calibrate on; give unmarked images of every kind")
        self.calibration = measure({name: kind.numpy() for name, kind in logits.items()})
        return self.calibration

    def sha256(self) -> str:
        """Return the content hash: of shape, weights, whitening and calibration."""
        digest = hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> str:
        """Write one safetensors file, atomically, and return its content hash.

        Raises:
            ModelError: Not whitened, holds NaN or infinity, or the file cannot be written.
        """
        if not self.whitened:
            raise ModelError(f"{path}: an extractor is saved only after whitening, since its bits are unfair before")
        if not all(bool(tensor.isfinite().all()) for tensor in self.state_dict().values()):
            raise ModelError(f"{path}: the extractor holds NaN or infinity and was not written; train it again")
        header = {"format": FORMAT, "sha256": self.sha256(), **self._record()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        try:
            write_bytes(path, encode(tensors, {KEY: json.dumps(header, sort_keys=True)}))
        except OSError as error:
            raise ModelError(f"{path}: cannot be written ({error}); choose another place") from error
        return header["sha256"]

    def _record(self) -> dict[str, Any]:
        calibration = None if self.calibration is None else asdict(self.calibration)
        shape: dict[str, Any] = {"bits": self.bits, "width": self.width, "depth": self.depth}
        if max(self.strides) > 1:  # without strides the record, and so the hash, is that of older files
            shape["strides"] = list(self.strides)
        return {**shape, "whitened": self.whitened, "gain": self.gain, "calibration": calibration}


@alone()
def load(path: Path) -> Extractor:
    """Read an extractor, frozen and in eval mode.

    Args:
        path: The file, or a folder with `model.safetensors`.

    Raises:
        ModelError: Absent, damaged, another kind of file, not whitened, or of a newer format.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"{file}: no extractor here; give the file of one, or make the shipped one again: "
            "lrdiff embedded make extractor"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: damaged or no safetensors file ({error}); copy or make it again") from error
    if KEY not in metadata:
        raise ModelError(f"{file}: another kind of safetensors file, not an lrdiff extractor; give an extractor")
    try:
        header = json.loads(metadata[KEY])
        if header["format"] != FORMAT:
            raise ModelError(f"{file}: format {header['format']}, this version reads {FORMAT}; update lrdiff")
        if not header["whitened"]:
            raise ModelError(f"{file}: the extractor is not whitened, so its bits are unfair; make it again")
        extractor = Extractor(header["bits"], header["width"], header["depth"], header.get("strides"))
        extractor.load_state_dict(tensors)
        extractor.whitened, extractor.gain = True, float(header["gain"])
        if header["calibration"] is not None:
            record = {**header["calibration"]}
            extractor.calibration = Calibration(
                **{**record, "mean": tuple(record["mean"]), "ones": tuple(record["ones"])}
            )
        expected = header["sha256"]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ShapeError) as error:
        raise ModelError(f"{file}: the extractor is damaged ({error}); copy or make it again") from error
    if extractor.sha256() != expected:
        raise ModelError(f"{file}: the extractor's content differs from its hash; copy or make it again")
    return extractor.requires_grad_(False).eval()


def _block(into: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, padding=1), nn.BatchNorm2d(out, eps=1e-3), nn.GELU())
