"""Settings taken back from an image: from the record that is inside the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app import library, text
from app.adapters import adapters
from app.site import Site
from lrdiff.artifact import sha256
from lrdiff.errors import DataError
from lrdiff.generate_config import AdapterSpec, GenerateConfig
from lrdiff.metadata import read_parameters

PLAIN_KEYS = ("prompt", "negative_prompt", "seed", "steps", "guidance", "sampler", "width", "height")
"""What is taken over from an image that another tool made."""


@dataclass(frozen=True, slots=True)
class Reused:
    """What an image says.

    Attributes:
        config: The settings, without adapters and decoder.
        adapters: Those that are here, with strength and steps.
        decoder: Folder of the marked decoder, or "".
        problem: What of it is not here, or "".
    """

    config: GenerateConfig
    adapters: tuple[AdapterSpec, ...]
    decoder: str = ""
    problem: str = ""


def reused(file: Path, site: Site) -> Reused:
    """Read the settings of an image.

    Raises:
        DataError: It holds none, or none that are valid.
    """
    try:
        record = read_parameters(file)
        values = record["config"] if "config" in record else {k: record[k] for k in PLAIN_KEYS if k in record}
        whole = GenerateConfig.model_validate(values)
        config = GenerateConfig.model_validate({**values, "adapter": (), "decoder": None, "scale": (1.0,)})
    except ValidationError as error:
        reasons = "; ".join(text.problem(item) for item in error.errors(include_url=False))
        raise DataError(f"{file.name}: {reasons}") from error
    except DataError as error:
        raise DataError(str(error).replace(f"{file.parent}/", "")) from error
    used = record.get("adapters") or []
    found, absent = _find(used, whole.adapters, site)
    decoder, unmarked = _decoder(whole, site)
    problems = [text.ADAPTER_ABSENT.format(names=", ".join(absent))] if absent else []
    return Reused(config, found, decoder, "; ".join([*problems, *unmarked]))


def _find(
    used: list[dict[str, Any]], asked: Sequence[AdapterSpec], site: Site
) -> tuple[tuple[AdapterSpec, ...], list[str]]:
    """Return the adapters that are here, found by their digest, and the names of the others."""
    here = {sha256(info.file): info.path for info in adapters(site.queue, site.adapters)} if used else {}
    found: list[AdapterSpec] = []
    absent: list[str] = []
    for number, item in enumerate(used):
        spec = asked[number] if number < len(asked) else AdapterSpec(Path(), float(item["weight"]))
        if item["sha256"] in here:
            found.append(replace(spec, path=here[item["sha256"]]))
        else:
            absent.append(str(item["name"]))
    return tuple(found), absent


def _decoder(whole: GenerateConfig, site: Site) -> tuple[str, list[str]]:
    if whole.decoder is None:
        return "", []
    here = {item.path.name: str(item.path) for item in library.decoders([site.decoders])}
    name = whole.decoder.name
    return here.get(name, ""), [] if name in here else [text.DECODER_ABSENT.format(name=name)]
