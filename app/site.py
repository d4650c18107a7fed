"""What every page of the app needs to know: the queue and the folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.jobs import Queue
from lrdiff.assets import ASSETS, MODELS


@dataclass(frozen=True, slots=True)
class Site:
    """One installation of the app.

    Attributes:
        queue: The runs and their worker.
        outputs: Folder for generated images.
        subjects: Folder of example subjects.
        adapters: Folder of installed adapters.
        decoders: Folder of installed marked decoders.
        extractor: Folder of the extractor that reads watermarks.
        registry: Registry of watermark keys; None is the user's own.
        key_file: Secret that opens the registry; None is the user's own.
    """

    queue: Queue
    outputs: Path
    subjects: Path = ASSETS / "subjects"
    adapters: Path = ASSETS / "adapters"
    decoders: Path = ASSETS / "decoders"
    extractor: Path = MODELS / "extractor"
    registry: str | None = None
    key_file: Path | None = None
