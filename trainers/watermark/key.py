"""The key of a run: from the registry, or from a file. Its id may be written down, its bits never."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from lrdiff.errors import ConfigError
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.keys import open_registry
from lrdiff.watermark.verifier import new_key
from trainers.watermark.config import WatermarkSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Secret:
    """Bits and what may be said of them.

    Attributes:
        id: What stands for the key in files; empty for bits that are kept nowhere.
        bits: A string of 0 and 1.
    """

    id: str
    bits: str = field(repr=False)


def draw(settings: WatermarkSettings) -> str:
    """Draw a key for the extractor of these settings, register it, and return its id."""
    extractor = load(settings.extractor_path)
    registry = open_registry(settings.registry or None, settings.key_file)
    key = registry.create(owner=settings.owner, extractor_sha256=extractor.sha256(), length=extractor.bits)
    log.info("drew key %s of %d bits and registered it in %s", key.id, extractor.bits, registry.name)
    return key.id


def find(settings: WatermarkSettings, extractor: Extractor) -> Secret:
    """Return the key that settings name; without one, fresh bits that nobody keeps, good for a trial only.

    Raises:
        RegistryError: The registry has no such key or cannot be opened.
        ConfigError: The key is revoked, for another extractor, or of another length; the file is no such file.
    """
    if settings.bits_file is not None:
        secret = _from_file(settings.bits_file)
    elif settings.key:
        secret = _from_registry(settings, extractor)
    else:
        secret = Secret("", new_key(extractor.bits))
    if len(secret.bits) != extractor.bits:
        raise ConfigError(f"key {secret.id!r} has {len(secret.bits)} bits, the extractor reads {extractor.bits}")
    return secret


def _from_registry(settings: WatermarkSettings, extractor: Extractor) -> Secret:
    key = open_registry(settings.registry or None, settings.key_file, create=False).get(settings.key)
    if key.revoked is not None:
        raise ConfigError(f"method.key: {key.id} was revoked on {key.revoked}; take another key, or leave it out")
    if key.extractor_sha256 != extractor.sha256():
        raise ConfigError(
            f"method.key: {key.id} is for extractor {key.extractor_sha256[:12]}, the one in use is "
            f"{extractor.sha256()[:12]}; give that extractor with method.extractor, or another key"
        )
    return Secret(key.id, key.bits)


def _from_file(path: Path) -> Secret:
    try:
        bits = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"method.bits_file: {path} cannot be read as plain text ({error})") from error
    if not bits or set(bits) - {"0", "1"}:
        raise ConfigError(f"method.bits_file: {path} must hold one string of 0 and 1 and nothing else")
    if bits in path.name:
        raise ConfigError("method.bits_file: its name holds the bits, and a run writes that name down; rename the file")
    return Secret(path.stem, bits)
