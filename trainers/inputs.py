"""The files a run was begun with: a resumed run must find the same images and the same base model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lrdiff.artifact import sha256
from lrdiff.backbones.base import fingerprint, read_json, weight_files
from lrdiff.errors import DataError, RunError
from trainers import data
from trainers.config import RunConfig
from trainers.rundir import RunDir

log = logging.getLogger(__name__)


def check(run: RunDir, config: RunConfig[Any], resume: bool) -> None:
    """Record by which files the run was begun; refuse to resume it with others, which would not continue it.

    Raises:
        RunError: Files of the images or of the base model changed, were added or are missing; all are named.
        LrdiffError: They cannot be read.
    """
    found = of(config)
    known = run.read().get("inputs") if resume else None
    if resume and known is None:
        log.warning("the run has no record of its images and base model; whether they changed cannot be told")
    changed = _changes(known, found) if known is not None else []
    if changed:
        raise RunError(
            f"{run.path}: cannot resume, because its inputs are not those it was begun with:\n"
            + "\n".join(changed)
            + f"\nput them back as they were, or make a new run with --config {run.record_path}"
        )
    run.update(inputs=found)


def of(config: RunConfig[Any]) -> dict[str, dict[str, Any]]:
    """Return the fingerprints of all files that decide a run, by the setting that names their folder."""
    found = {"model": model_files(config.find_model())}
    if config.needs_images or config.has_images:
        found["data.images"] = data.fingerprint(config.data.images)
    if config.data.validation is not None:
        found["data.validation"] = data.fingerprint(config.data.validation, "data.validation")
    for setting, path in config.files().items():
        found[setting] = _plain_files(path, setting)
    return found


def _plain_files(path: Path, setting: str) -> dict[str, dict[str, Any]]:
    """Fingerprint a file, or the files of a folder."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    try:
        return {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in files}
    except OSError as error:
        raise DataError(f"{setting}: {error.filename} cannot be read ({error.strerror}); give a file") from error


def model_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Fingerprint the files of a base model that are loaded: every part's weights and its settings."""
    files = [folder / "model_index.json"]
    if not files[0].is_file():  # not in parts: a generator of heads
        return _plain_files(folder, "model")
    weights: list[Path] = []
    for part in sorted(folder / name for name in read_json(files[0]) if (folder / name).is_dir()):
        files += sorted(path for path in part.iterdir() if path.suffix in (".json", ".txt"))
        weights += weight_files(part)[0] if any(part.glob("*.safetensors")) else []
    # Large weights are hashed in part: see `fingerprint`.
    digests = {path: sha256(path) for path in files} | {path: fingerprint({}, [path]) for path in weights}
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in sorted(digests.items())
    }


def _changes(known: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """Say which files changed, were added or are missing, one line for each setting and kind."""
    lines = []
    for setting in sorted(known.keys() | found.keys()):
        before, after = known.get(setting, {}), found.get(setting, {})
        kinds = {
            "changed": [name for name in before if name in after and before[name] != after[name]],
            "added": [name for name in after if name not in before],
            "missing": [name for name in before if name not in after],
        }
        lines += [f"{setting}: {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    return lines
