"""The adapters that can be applied: those that runs left behind, and those that are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from app import text_runs
from app.folder import Folder
from app.outcome import usable_artifact
from lrdiff.artifact import Artifact, Header, read_header
from lrdiff.errors import ArtifactError
from lrdiff.files import replacing
from trainers.rundir import RunDir

SUFFIX = ".safetensors"
TRASH = ".trash"
DENOISERS = ("unet", "transformer")
"""Parts of a base model whose adapters pictures are drawn with."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter as its file's header describes it.

    Attributes:
        name: For people: the run's name, or the file's.
        path: What names it in settings: the run directory, or the file.
        file: The safetensors file.
        method: That made it.
        component: The part of the base model that it goes into.
        base_model: Name or path of the base model, for people.
        base_fingerprint: Of the base model that it fits.
        prompt: With which it was trained, or "".
        steps: For which it was trained, or None.
        size: Bytes.
        created: When the file was written, ISO 8601 in UTC.
        from_run: Name of the run, or "" for an installed one.
        previews: The newest previews of the run; an installed one has none.
    """

    name: str
    path: Path
    file: Path
    method: str
    component: str
    base_model: str
    base_fingerprint: str
    prompt: str
    steps: int | None
    size: int
    created: str
    from_run: str = ""
    previews: tuple[Path, ...] = ()


def adapters(folder: Folder, installed: Path) -> list[AdapterInfo]:
    """Return the adapters of ended runs, newest first, then the installed ones by name. Damaged ones are in `problems`.

    Args:
        folder: The runs.
        installed: Folder of installed adapters; it may be absent.
    """
    found = [
        _info(folder.name(run), run.path, run.artifact_path, folder.name(run), _newest_previews(run))
        for run, record in folder.runs()
        if record["state"] in ("finished", "stopped") and usable_artifact(run, record)
    ]
    found += [_info(path.stem, path, path) for path in sorted(installed.glob(f"*{SUFFIX}"))]
    return [info for info in found if info is not None]


def problems(installed: Path) -> list[str]:
    """Return what is wrong with the installed files that cannot be applied, one sentence for each."""
    found = []
    for path in sorted(installed.glob(f"*{SUFFIX}")):
        try:
            _described(path)
        except (ArtifactError, OSError) as error:
            found.append(str(error))
    return found


def fitting(found: Sequence[AdapterInfo], fingerprint: str, components: Sequence[str] = DENOISERS) -> list[AdapterInfo]:
    """Return the adapters that were made for a base model, and for one of these parts of it."""
    return [info for info in found if info.base_fingerprint == fingerprint and info.component in components]


def install(file: Path, folder: Path) -> AdapterInfo:
    """Copy an adapter into the folder of installed ones, after it was read completely.

    Args:
        file: Any adapter of lrdiff; it stays where it is.
        folder: Of installed adapters; made when absent.

    Raises:
        ArtifactError: It is no adapter, is damaged, has the name of an installed one, or cannot be copied.
    """
    if file.suffix != SUFFIX:
        raise ArtifactError(text_runs.NOT_AN_ADAPTER.format(path=file))
    Artifact.load(file)
    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ArtifactError(text_runs.ADAPTER_TAKEN.format(path=target))
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        raise ArtifactError(text_runs.CANNOT_CHANGE.format(path=folder, reason=error.strerror or error)) from error
    info = _info(target.stem, target, target)
    if info is None:
        raise ArtifactError(text_runs.NOT_AN_ADAPTER.format(path=file))
    return info


def remove(file: Path, folder: Path) -> Path:
    """Move an installed adapter into the folder's trash and return where it lies now.

    Raises:
        ArtifactError: It does not lie directly in the folder, or cannot be moved.
    """
    is_installed = file.suffix == SUFFIX and file.is_file() and file.parent.resolve() == folder.resolve()
    if not is_installed:
        raise ArtifactError(text_runs.NOT_INSTALLED.format(path=file, folder=folder))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    target = folder / TRASH / f"{file.stem}-{stamp}{SUFFIX}"
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(file, target)
    except OSError as error:
        raise ArtifactError(text_runs.CANNOT_CHANGE.format(path=folder, reason=error.strerror or error)) from error
    return target


def _info(name: str, path: Path, file: Path, from_run: str = "", previews: tuple[Path, ...] = ()) -> AdapterInfo | None:
    """Describe an adapter file; None for one that is damaged, or has gone meanwhile."""
    try:
        stat, header = file.stat(), _described(file)
    except (ArtifactError, OSError):
        return None
    steps = header.extra.get("steps")
    return AdapterInfo(
        name=name,
        path=path,
        file=file,
        method=header.method,
        component=header.component,
        base_model=header.base_model,
        base_fingerprint=header.base_fingerprint,
        prompt=str(header.extra.get("prompt") or ""),
        steps=steps if isinstance(steps, int) else None,
        size=stat.st_size,
        created=datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"),
        from_run=from_run,
        previews=previews,
    )


def _described(file: Path) -> Header:
    stat = file.stat()
    return _header(file, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1000)
def _header(file: Path, inode: int, changed: int, size: int) -> Header:
    return read_header(file)


def _newest_previews(run: RunDir) -> tuple[Path, ...]:
    steps = sorted((folder for folder in run.previews.glob("*") if folder.name.isdigit()), key=lambda f: int(f.name))
    return tuple(sorted(steps[-1].glob("[!.]*.png"))) if steps else ()
