"""An extractor that somebody else trained, as TorchScript: code from a file, so it runs only with consent."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lrdiff.errors import ModelError
from lrdiff.watermark.calibration import Calibration
from lrdiff.watermark.extractor import MEAN, STD

SUFFIXES = frozenset({".pt", ".pth", ".ts", ".torchscript", ".jit"})
PROBE = 64


class Scripted(nn.Module):
    """A whitened TorchScript extractor: ImageNet-normalised RGB [B, 3, H, W] in, logits [B, n] out.

    The form in which Stable Signature (arXiv 2303.15435) publishes its extractor. Nothing in the file says how its bits
    behave on unmarked pictures, so it has no calibration; give unmarked pictures to measure one (`null.py`).

    Attributes:
        bits: Number of bits it reads.
        calibration: Always None.
    """

    def __init__(self, module: nn.Module, file_sha256: str) -> None:
        """Take a loaded module and try it on an empty picture.

        Raises:
            ModelError: It fails, or does not give a row of logits.
        """
        super().__init__()
        self.module = module
        self.calibration: Calibration | None = None
        self._sha256 = file_sha256
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.bits = 0
        with torch.no_grad():
            self.bits = self(torch.zeros(1, 3, PROBE, PROBE)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, bits] of images [B, 3, H, W] in [-1, 1].

        Raises:
            ModelError: The code in the file fails, or gives something else than logits.
        """
        normal = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        try:
            logits = self.module(normal)
        except Exception as error:  # foreign code may raise anything
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ModelError(
                f"the TorchScript extractor fails on {list(images.shape)} ({last}); use another"
            ) from error
        rows = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(images) and logits.shape[1] > 0
        if not rows or not logits.is_floating_point() or self.bits not in (0, logits.shape[1]):
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"the TorchScript extractor gives {shape} for {len(images)} pictures, not rows of logits")
        return logits.float()

    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        return self._sha256


def load_torchscript(path: Path, *, consent: bool) -> Scripted:
    """Read a TorchScript extractor, frozen and in eval mode.

    Args:
        path: The file.
        consent: The user has said that the file's code may run.

    Raises:
        ModelError: No consent, absent, no TorchScript, or it does not behave as an extractor.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no extractor here; give the file of one")
    if not consent:
        raise ModelError(
            f"{path}: is TorchScript, which is code that would run with your rights. If you trust where it comes from, "
            "add --trust-extractor-code; lrdiff's own extractors are safetensors files and hold no code"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with warnings.catch_warnings():
            # torch asks to move from TorchScript to torch.export, but this is the form these files are in.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        last = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"{path}: is no TorchScript file ({last}). A checkpoint of weights alone cannot be used: its logits are "
            "not whitened; give the whitened TorchScript file"
        ) from error
    scripted = Scripted(module, digest).eval()
    return scripted.requires_grad_(False)
