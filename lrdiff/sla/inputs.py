"""What the operator accepts, and which backend does the work. Whatever cannot be honoured is refused here."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from lrdiff.errors import BackendError, ConfigError, DataError, ShapeError

LAYOUTS = ("bhld", "blhd")
BACKENDS = ("auto", "reference", "triton", "flex")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TRITON_DTYPES = DTYPES[:3]
TRITON_WIDTHS = range(16, 129, 8)


def heads_first(layout: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return views [B, H, L, D]; nothing is copied."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}; there are {', '.join(LAYOUTS)}")
    for x in tensors:
        if x.dim() != 4:
            raise ShapeError(f"queries, keys and values are [batch, heads, tokens, features]; found {list(x.shape)}")
    return tuple(x.transpose(1, 2) for x in tensors) if layout == "blhd" else tensors


def check_tensors(q: Tensor, *others: Tensor) -> None:
    """Raise unless all tensors, [B, H, L, D], agree in shape, dtype and device and are of a supported dtype."""
    for x in others:
        if x.shape[1] != q.shape[1]:
            raise ShapeError(
                f"{q.shape[1]} query heads and {x.shape[1]} key or value heads: grouped heads are not supported; "
                "repeat the keys and values first"
            )
        if x.shape != q.shape:
            raise ShapeError(
                f"queries {list(q.shape)} and keys or values {list(x.shape)} (batch, heads, tokens, features) differ: "
                "sparse-linear attention is self-attention, all three have one shape"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise ShapeError(f"queries are {q.dtype} on {q.device}, keys or values {x.dtype} on {x.device}")
    if min(q.shape) < 1:
        raise ShapeError(f"queries {list(q.shape)} are empty")
    if q.dtype not in DTYPES:
        raise ConfigError(f"{q.dtype} is not supported; there are {', '.join(map(str, DTYPES))}")


def check_finite(**tensors: Tensor) -> None:
    """Raise `DataError` naming every tensor that holds NaN or infinity. Waits for the device."""
    bad = {name: int((~x.isfinite()).sum()) for name, x in tensors.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        found = ", ".join(f"{count} in {name}" for name, count in bad.items())
        raise DataError(f"values that are NaN or infinite: {found}. Look at the layer that made them")


def interpreting() -> bool:
    """Tell whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), on the CPU and slowly."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose(backend: str, q: Tensor) -> str:
    """Return the backend that works on `q`, [B, H, L, D]: "reference", "triton" or "flex".

    "auto" is "triton" on a CUDA device and "reference" on a CPU.

    Raises:
        ConfigError: There is no such backend.
        BackendError: The backend cannot work on this device, dtype or number of features.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; there are {', '.join(BACKENDS)}")
    kind = q.device.type
    if backend == "auto":
        if kind not in ("cpu", "cuda"):
            raise BackendError(f"no kernel for {kind} devices: use 'cpu' or 'cuda', or ask for backend='reference'")
        backend = "triton" if kind == "cuda" else "reference"
    if backend == "triton":
        _check_triton(q)
    if backend == "flex":
        _check_flex(q)
    return backend


def _check_triton(q: Tensor) -> None:
    if importlib.util.find_spec("triton") is None:
        raise BackendError("the kernels need the package triton: install it, or ask for backend='reference'")
    if q.device.type != "cuda" and not interpreting():
        raise BackendError(
            f"the Triton kernels need a CUDA device, the tensors are on {q.device}: use backend='reference' "
            "(on a CPU the kernels run only in Triton's interpreter, with TRITON_INTERPRET=1)"
        )
    if q.dtype not in TRITON_DTYPES:
        raise BackendError(f"the Triton kernels work in float16, bfloat16 and float32, not {q.dtype}")
    if q.shape[-1] not in TRITON_WIDTHS:
        raise BackendError(
            f"{q.shape[-1]} features per head: the Triton kernels support multiples of 8 from 16 to 128 (the D x D "
            "sums of a wider head do not fit the registers); ask for backend='reference'"
        )


def _check_flex(q: Tensor) -> None:
    if q.device.type not in ("cpu", "cuda"):
        raise BackendError(f"FlexAttention runs on 'cpu' and 'cuda', the tensors are on {q.device}")
    if q.dtype == torch.float64 and q.device.type == "cuda":
        raise BackendError("FlexAttention works in float16, bfloat16 and float32; ask for backend='reference'")
