"""The trash of a folder of runs: `.trash/TIME/NAME`. Deleting is a move, restoring the move back."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from app import text_runs
from lrdiff.errors import RunError

NAME = ".trash"
STAMP = "%Y%m%d-%H%M%S-%f"
STAMPED = re.compile(r"\d{8}-\d{6}-\d{6}")


@dataclass(frozen=True, slots=True)
class Trashed:
    """A run in the trash.

    Attributes:
        identity: What `restore` and `purge` take: "TIME/NAME".
        name: The name it had.
        deleted: When, in UTC.
        path: Where it lies.
    """

    identity: str
    name: str
    deleted: datetime
    path: Path


def put(root: Path, name: str) -> Trashed:
    """Move a run into the trash. Raises `RunError` when it cannot be moved, and then it stays where it was."""
    stamp = datetime.now(UTC).strftime(STAMP)
    target = root / NAME / stamp / name
    try:
        target.parent.mkdir(parents=True)
        (root / name).rename(target)
    except OSError as error:
        _remove_empty(target.parent, root)
        reason = error.strerror or error
        raise RunError(text_runs.CANNOT_MOVE.format(name=name, reason=reason, path=root)) from error
    return find(root, f"{stamp}/{name}")


def listed(root: Path) -> list[Trashed]:
    """Return the runs in the trash, newest first."""
    records = [*root.glob(f"{NAME}/*/*/run.json"), *root.glob(f"{NAME}/*/*/*/run.json")]
    identities = [path.parent.relative_to(root / NAME).as_posix() for path in records]
    # What a run itself holds, and what somebody else put there, is no run of ours.
    kept = [identity for identity in identities if _is_plain(identity) and not _is_inside(identity, identities)]
    return [find(root, identity) for identity in sorted(kept, reverse=True)]


def find(root: Path, identity: str) -> Trashed:
    """Return a run in the trash. Raises `RunError` when there is none; an identity never leads out of the trash."""
    path = root / NAME / identity if _is_plain(identity) else root
    if path == root or not path.is_dir() or path.resolve() != (root.resolve() / NAME / identity):
        raise RunError(text_runs.NOT_IN_TRASH.format(identity=identity, root=root))
    stamp, _, name = identity.partition("/")
    return Trashed(identity, name, datetime.strptime(stamp, STAMP).replace(tzinfo=UTC), path)


def restore(root: Path, identity: str) -> Path:
    """Move a run back to where it was and return its folder. Raises `RunError` when its name is taken."""
    found = find(root, identity)
    target = root / found.name
    if target.exists() or target.is_symlink():
        raise RunError(text_runs.NAME_TAKEN.format(name=found.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        found.path.rename(target)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(text_runs.CANNOT_MOVE.format(name=found.name, reason=reason, path=root)) from error
    _remove_empty(found.path.parent, root)
    return target


def purge(root: Path, identity: str) -> None:
    """Remove a run that lies in the trash for good. Raises `RunError` when it does not lie there or will not go."""
    found = find(root, identity)
    try:
        shutil.rmtree(found.path)
    except OSError as error:
        raise RunError(text_runs.CANNOT_REMOVE.format(path=found.path, reason=error.strerror or error)) from error
    _remove_empty(found.path.parent, root)


def _is_plain(identity: str) -> bool:
    parts = PurePosixPath(identity).parts
    is_plain = 2 <= len(parts) <= 3 and "/".join(parts) == identity and STAMPED.fullmatch(parts[0]) is not None
    return is_plain and not any(part[0] in "./" for part in parts)


def _is_inside(identity: str, others: list[str]) -> bool:
    return any(identity.startswith(f"{other}/") for other in others)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove the folders that only led to a run in the trash."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
