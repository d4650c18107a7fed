"""`assets/MANIFEST.toml`: what is shipped, its checksums, how it was made and how good it is."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdiff.artifact import sha256
from lrdiff.files import write_bytes

NAME = "MANIFEST.toml"
HEAD = "# Written by `lrdiff embedded make` and the measurements in tests/bench; paths are relative to this file.\n"
FOLDERS = ("mark", "models", "people", "prompts", "subjects")
"""Folders of which every file is listed."""

Entry = dict[str, Any]


def read(assets: Path) -> dict[str, Entry]:
    """Return the entries by name; empty where there is no manifest."""
    file = assets / NAME
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def record(assets: Path, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """Replace an entry. Earlier quality figures go, since they were measured on other files.

    Args:
        assets: Folder of the manifest.
        name: Of the entry.
        folder: Below `assets`; all its files are listed.
        facts: How it was made: `command`, `seed`, `device`, `seconds`, `made_by`, and what else is worth knowing. What
            no command made has `made_by` alone.
    """
    files = [
        {"path": path.relative_to(assets).as_posix(), "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    entries = read(assets) | {name: {**facts, "files": files}}
    _write(assets, entries)


def set_quality(assets: Path, name: str, figures: Mapping[str, float]) -> None:
    """Add measured figures to an entry. Raises `KeyError` when there is no such entry."""
    entries = read(assets)
    entries[name]["quality"] = entries[name].get("quality", {}) | dict(figures)
    _write(assets, entries)


def problems(assets: Path) -> list[str]:
    """Return what differs between the manifest and the disk, one line per file."""
    listed = {file["path"]: file["sha256"] for entry in read(assets).values() for file in entry["files"]}
    present = {
        path.relative_to(assets).as_posix() for name in FOLDERS for path in (assets / name).rglob("*") if path.is_file()
    }
    found = [f"{path}: not in the manifest" for path in sorted(present - set(listed))]
    for path, digest in sorted(listed.items()):
        if not (assets / path).is_file():
            found.append(f"{path}: absent")
        elif sha256(assets / path) != digest:
            found.append(f"{path}: changed")
    return found


def _write(assets: Path, entries: Mapping[str, Entry]) -> None:
    text = HEAD
    for name, entry in sorted(entries.items()):
        plain = {key: value for key, value in entry.items() if key not in ("files", "quality")}
        text += f"\n[{name}]\n{_lines(plain)}"
        if "quality" in entry:
            text += f"\n[{name}.quality]\n{_lines(entry['quality'])}"
        for file in entry["files"]:
            text += f"\n[[{name}.files]]\n{_lines(file)}"
    write_bytes(assets / NAME, text.encode())


def _lines(table: Mapping[str, Any]) -> str:
    """Write strings, numbers and truth values, for which JSON's notation is TOML's too."""
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n" for key, value in table.items()
    )
