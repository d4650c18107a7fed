"""What every page of the app needs to know: the queue and the folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.jobs import Queue

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(frozen=True, slots=True)
class Site:
    """One installation of the app.

    Attributes:
        queue: The runs and their worker.
        outputs: Folder for generated images.
        subjects: Folder of example subjects.
        adapters: Folder of installed adapters.
    """

    queue: Queue
    outputs: Path
    subjects: Path = ASSETS / "subjects"
    adapters: Path = ASSETS / "adapters"
