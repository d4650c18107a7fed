"""The verification that the page and the API share: original bytes in, a verdict and the key it speaks of out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import text_verify as text
from app.site import Site
from lrdiff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lrdiff.watermark.example import Example
    from lrdiff.watermark.keys import Key, Registry
    from lrdiff.watermark.reading import Network
    from lrdiff.watermark.verdict import Verdict

MAX_BYTES = 50 * 2**20


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and the key that came nearest.

    Attributes:
        verdict: The answer and its figures.
        key: Id of the key.
        owner: Whose it is.
        agree: For every bit, whether it was read as the key has it.
    """

    verdict: Verdict
    key: str
    owner: str
    agree: tuple[bool, ...] = field(repr=False)


def registry(site: Site, create: bool = False) -> Registry:
    """Open the registry of keys. Raises `RegistryError` where there is none and none is to be made."""
    from lrdiff.watermark.keys import open_registry

    return open_registry(site.registry, site.key_file, create=create)


def keys(site: Site) -> list[Key]:
    """Return all keys, newest first; none where there is no registry yet."""
    from lrdiff.watermark.keys import RegistryError

    try:
        return registry(site).all()[::-1]
    except RegistryError:
        # Told apart from trouble by asking the same place once more, in the way that makes none.
        if _is_there(site):
            raise
        return []


def _is_there(site: Site) -> bool:
    from lrdiff.watermark.keys.database import Database, default_url

    return Database(site.registry or default_url()).exists()


def example(site: Site) -> Example:
    """Make the example mark ready: its key counts from now on, and its decoder can be drawn with."""
    from lrdiff.watermark.example import install

    return install(registry(site, create=True), network(site).sha256(), site.decoders)


def is_readable(site: Site) -> bool:
    """Tell whether there is an extractor, without loading it: without one nothing is read and no key can be made."""
    return any(site.extractor.glob("*.safetensors")) if site.extractor.is_dir() else site.extractor.is_file()


def network(site: Site) -> Network:
    """Return the installed extractor. Raises `ModelError` when it is absent or damaged."""
    folder = site.extractor
    stamp = max((path.stat().st_mtime_ns for path in folder.glob("*")), default=0) if folder.is_dir() else 0
    return _network(folder, stamp)


@lru_cache(maxsize=2)
def _network(folder: Path, stamp: int) -> Network:
    from lrdiff.watermark.verifier import open_extractor

    return open_extractor(folder)


def verify(site: Site, file: Path, key_id: str = "", alpha: float = 1e-6, search: bool = False) -> Judged:
    """Judge the bytes of a file.

    Args:
        site: Where extractor and registry are.
        file: Read as it is, never re-encoded.
        key_id: The key to look for; all that count when empty.
        alpha: Accepted rate of false alarms over all keys and readings.
        search: Also try mirrored, turned, tilted and resized.

    Raises:
        LrdiffError: No picture, too large, no key, no extractor; nothing is ever called detected because of it.
    """
    from lrdiff.watermark.verifier import verify as judge

    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file.name}: larger than {MAX_BYTES // 2**20} MB")
    reader = network(site)
    table, ids, doubt = _sought(site, key_id, reader)
    try:
        verdict = judge(file.read_bytes(), table, alpha, reader, search=search, doubt=doubt)
    except DataError as error:
        raise DataError(str(error).replace(f"{file.parent}/", "")) from error
    key = registry(site).get(ids[verdict.key])
    agree = tuple(read == bit for read, bit in zip(verdict.read, key.bits, strict=True))
    return Judged(verdict, key.id, key.owner, agree)


def _sought(site: Site, key_id: str, reader: Network) -> tuple[Any, tuple[str, ...], str | None]:
    """Return (keys, their ids, why a match would prove nothing)."""
    if not keys(site):
        raise ConfigError(text.NO_KEYS)
    book, extractor = registry(site), reader.sha256()
    if not key_id:
        found = book.candidates(extractor, reader.bits)
        if not found.ids:
            raise ConfigError(text.NO_KEYS)
        return found.table, found.ids, None
    key = book.get(key_id)
    if key.extractor_sha256 != extractor:
        raise ConfigError(text.OTHER_EXTRACTOR.format(id=key.id))
    doubt = text.REVOKED_DOUBT.format(when=key.revoked, reason=key.reason) if key.revoked else None
    return [key.bits], (key.id,), doubt
