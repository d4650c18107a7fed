"""The parameters inside a generated PNG, written twice.

Text chunk "lrdiff": JSON, complete; its "config" makes the image again. Text chunk "parameters": the plain text that
AUTOMATIC1111's web UI introduced and most image tools show.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lrdiff.errors import DataError
from lrdiff.generate_config import span
from lrdiff.images import MAX_PIXELS

FORMAT = 1
SAMPLER_NAMES = {"ddim": "DDIM", "dpm++2m": "DPM++ 2M", "euler": "Euler"}


def texts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return both text chunks of an image.

    Args:
        record: As `lrdiff.generate` builds it: config, prompt, negative_prompt, seed, steps, sampler, guidance, width,
            height, model {name, fingerprint}, adapters [{name, method, sha256, weight, steps}], decoder {fingerprint}
            or None, truncated, versions.
    """
    return {"parameters": plain_text(record), "lrdiff": to_json({"kind": "image", **record})}


def to_json(record: Mapping[str, Any]) -> str:
    """Return the "lrdiff" text: pure ASCII, keys sorted, so that equal records are equal bytes."""
    return json.dumps({"format": FORMAT, **record}, sort_keys=True, allow_nan=False)


def plain_text(record: Mapping[str, Any]) -> str:
    """Return the "parameters" text: prompt, negative prompt, one line of settings."""
    settings = {
        "Steps": record["steps"],
        "Sampler": SAMPLER_NAMES[record["sampler"]],
        "CFG scale": f"{record['guidance']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["model"]["fingerprint"][:10],
        "Model": record["model"]["name"],
    }
    if record["adapters"]:
        settings["Adapters"] = ", ".join(
            f"{item['name']}:{item['weight']:g}{span(*item['steps'])}" for item in record["adapters"]
        )
    if record.get("decoder"):
        settings["VAE hash"] = record["decoder"]["fingerprint"][:10]
    settings["Version"] = f"lrdiff {record['versions']['lrdiff']}"
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items()))
    return "\n".join(lines)


def read_parameters(source: Path | str | bytes) -> dict[str, Any]:
    """Read how an image was made.

    Args:
        source: A PNG file, or its bytes.

    Returns:
        The "lrdiff" record where there is one. Otherwise what the "parameters" text says: prompt, negative_prompt, and
        of steps, sampler, guidance, seed, width, height, model those it names, and every other setting under "other".

    Raises:
        DataError: No picture, or a picture without parameters.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: too large ({picture.width} x {picture.height}) for an image made here")
            picture.load()  # PNG text may follow the pixels
            found = dict(picture.info)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error})") from error
    if "lrdiff" in found:
        try:
            record = json.loads(found["lrdiff"])
        except ValueError as error:
            raise DataError(f"{name}: its lrdiff record is damaged ({error})") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise DataError(f"{name}: its lrdiff record has an unknown format; update lrdiff")
        return record
    if isinstance(found.get("parameters"), str):
        try:
            return parse_plain_text(found["parameters"])
        except ValueError as error:
            raise DataError(f"{name}: its parameters cannot be understood ({error})") from error
    raise DataError(f"{name}: carries no parameters; they are lost when an image is re-saved or sent through a chat")


def parse_plain_text(text: str) -> dict[str, Any]:
    """Read a "parameters" text. See `read_parameters` for the keys. Raises `ValueError` for a number that is none."""
    lines = text.rstrip("\n").split("\n")
    settings = _settings(lines.pop()) if lines[-1].startswith("Steps:") else {}
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    record: dict[str, Any] = {"prompt": prompt.removeprefix("\n"), "negative_prompt": negative.strip()}
    names = {label: key for key, label in SAMPLER_NAMES.items()}
    for key, label, read in (
        ("steps", "Steps", int),
        ("sampler", "Sampler", lambda value: names.get(value, value)),
        ("guidance", "CFG scale", float),
        ("seed", "Seed", int),
        ("model", "Model", str),
    ):
        if label in settings:
            record[key] = read(settings.pop(label))
    size = re.fullmatch(r"(\d+)x(\d+)", settings.get("Size", ""))
    if size:
        del settings["Size"]
        record["width"], record["height"] = int(size[1]), int(size[2])
    return {**record, "other": settings}


def _settings(line: str) -> dict[str, str]:
    """Split 'Key: value, Key: "quoted, value"' into a dict."""
    found = re.findall(r'([^:,]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)', line)
    return {key.strip(): json.loads(value) if value.startswith('"') else value.strip() for key, value in found}


def _quoted(value: Any) -> str:
    """Quote a setting's value when it would be torn apart otherwise."""
    text = str(value)
    return json.dumps(text) if re.search(r'[,:"\n]', text) else text
