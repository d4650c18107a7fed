"""What a first visitor would start: an example subject with the settings as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import pictures
from app.site import Site
from trainers.registry import run_config_class

METHOD = "tensor-lora"


def order(site: Site) -> tuple[str, dict[str, Any], dict[str, Path]] | None:
    """Return (method, configuration, files), or None where no example subjects are installed."""
    subject = next(iter(pictures.subjects(site.subjects).values()), None)
    if subject is None:
        return None
    config = run_config_class(METHOD)(method={}).model_dump(mode="json")
    return METHOD, config, {path.name: path for path in subject.files}
