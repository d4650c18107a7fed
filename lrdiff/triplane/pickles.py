"""Reading a pickled published generator without running anything that is in it.

A pickle is a program: it names functions and calls them. The unpickler here knows a handful of harmless names, turns
the classes such a file is made of into empty shells that only keep their state, and refuses every other name. The
Python source text that those files carry is never looked at. What comes out are tensors and plain settings.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrdiff.errors import DataError

DEPTH = 64
GENERATOR = "TriPlaneGenerator"


class Shell:
    """Stands for any class of the file: takes whatever it is given and keeps only its state."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Shell:
        """Make an empty shell, whatever the arguments."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def fields(self) -> dict[str, Any]:
        """Return the state as one dictionary; a state in two parts (dictionary and slots) is merged."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


class Record(dict[str, Any]):
    """A dictionary that ignores attributes."""

    def __setstate__(self, state: Any) -> None:
        return


class Sealed:
    """Holds a function or tensor of ours out of the file's reach: a pickle may change any object that it can name."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *args: Any) -> Any:
        """Call what is held; the file calls nothing else."""
        return self.value(*args)

    def __setstate__(self, state: Any) -> None:
        raise DataError("changes the functions that read it, which no EG3D file does; nothing was run")


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a file holds of a generator.

    Attributes:
        tensors: Parameters and buffers by their dotted names.
        settings: The generator's attributes that are plain values, such as `rendering_kwargs`.
        gains: (weight gain, bias gain) of fully connected layers by name, where the file states both.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    gains: dict[str, tuple[float, float]]


def read_pickle(path: Path) -> Pickled:
    """Read a published generator's pickle, inertly.

    Raises:
        DataError: The file is absent, damaged, names something that no such file needs, or holds no generator.
    """
    try:
        with path.open("rb") as file:
            content = _Inert(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a .pkl file") from error
    except Exception as error:  # bytes made to harm raise anything: IndexError, TypeError, MemoryError, ...
        raise DataError(
            f"{path}: no pickle of a generator, or a damaged one ({type(error).__name__}: {error}); give a "
            "complete .pkl as EG3D publishes them; .pt and .safetensors files are of other kinds"
        ) from error
    network = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(network, Shell) or network.name != GENERATOR:
        raise DataError(f"{path}: holds no {GENERATOR} under G_ema, so it is no EG3D network; give the .pkl of one")
    tensors: dict[str, Tensor] = {}
    gains: dict[str, tuple[float, float]] = {}
    try:
        for name, module in _modules(network, "", 0):
            tensors |= _tensors(name, module)
            pair = tuple(module.get(key) for key in ("weight_gain", "bias_gain"))
            if all(isinstance(value, int | float) and math.isfinite(value) for value in pair):
                gains[name] = (float(pair[0]), float(pair[1]))  # pyright: ignore[reportArgumentType]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Pickled(tensors, dict(_plain_settings(network.fields())), gains)


class _Inert(pickle.Unpickler):
    """Finds names in a short list and nowhere else. It imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module.partition(".")[0] in _SHELLS or module.startswith("torch.nn.modules."):
            return type("Shell", (Shell,), {"name": name, "__slots__": ()})
        raise DataError(f"names {module}.{name}, which no EG3D file needs; nothing was run. Do not trust this file")


def _reconstruct(meta: Any) -> Shell:
    """Stand in for the file's own loader, which would run the source text in `meta`."""
    values = meta.fields() if isinstance(meta, Shell) else meta
    if not isinstance(values, dict) or not isinstance(values.get("class_name"), str):
        raise DataError("holds an object without a class name; copy it again")
    made = type("Shell", (Shell,), {"name": values["class_name"], "__slots__": ()})()
    made.state = values.get("state") or {}
    return made


def _load_storage(data: Any) -> Sealed:
    """Read the bytes of a tensor's storage; torch's own restricted reader refuses everything but tensors."""
    if not isinstance(data, bytes):
        raise DataError("holds a tensor whose bytes are no bytes; copy it again")
    return Sealed(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))


def _rebuild_tensor(held: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Sealed:
    """Return a tensor of its own memory, after checking that it lies inside its storage."""
    storage = held.value if isinstance(held, Sealed) else None
    if not isinstance(storage, torch.TypedStorage):
        raise DataError("holds a tensor without storage; copy it again")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)  # pyright: ignore[reportArgumentType]
    whole = len(size) == len(stride) and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if whole else -1
    count = math.prod(size) if whole else -1
    if not whole or count > flat.numel() or (count and last >= flat.numel()):
        raise DataError("holds a tensor that reaches beyond its storage; copy it again")
    return Sealed(flat.as_strided(tuple(size), tuple(stride), offset).clone())


def _rebuild_parameter(data: Any, *_: Any) -> Sealed:
    if not (isinstance(data, Sealed) and isinstance(data.value, Tensor)):
        raise DataError("holds a parameter that is no tensor; copy it again")
    return data


_SHELLS = frozenset({"training", "torch_utils", "dnnlib", "numpy"})
"""Packages whose classes such a file names. None of them is imported; numpy's numbers become shells as well."""

_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): Sealed(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Sealed(_rebuild_parameter),
    ("torch.storage", "_load_from_bytes"): Sealed(_load_storage),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Sealed(_reconstruct),
    ("dnnlib.util", "EasyDict"): Record,
}


def _modules(shell: Shell, prefix: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the fields of a module and of all below it, by dotted name."""
    if depth > DEPTH:
        raise DataError(f"nests modules more than {DEPTH} deep; it is no EG3D network")
    fields = shell.fields()
    yield prefix, fields
    children = fields.get("_modules")
    for name, child in children.items() if isinstance(children, dict) else ():
        if isinstance(child, Shell):
            yield from _modules(child, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def _tensors(prefix: str, fields: dict[str, Any]) -> dict[str, Tensor]:
    """Return parameters and persistent buffers of one module."""
    skipped = fields.get("_non_persistent_buffers_set")
    skipped = skipped if isinstance(skipped, set) else set()
    found = {}
    for kind in ("_parameters", "_buffers"):
        items = fields.get(kind)
        for name, value in items.items() if isinstance(items, dict) else ():
            tensor = value.value if isinstance(value, Sealed) else None
            if isinstance(tensor, Tensor) and not (kind == "_buffers" and name in skipped):
                found[f"{prefix}.{name}" if prefix else str(name)] = tensor
    return found


def _plain_settings(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield attributes that are JSON values all through. A numpy number is a shell by now, and is left out."""
    for name, value in fields.items():
        if not name.startswith("_") or name == "_init_kwargs":
            plain, kept = _plain(value, 0)
            if kept:
                yield name, plain


def _plain(value: Any, depth: int) -> tuple[Any, bool]:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value, True
    if depth > DEPTH:
        return None, False
    if isinstance(value, list | tuple):
        items = [_plain(item, depth + 1) for item in value]
        return [item for item, _ in items], all(kept for _, kept in items)
    if isinstance(value, dict):
        pairs = {str(key): _plain(item, depth + 1) for key, item in value.items()}
        return {key: item for key, (item, kept) in pairs.items() if kept}, True
    return None, False
