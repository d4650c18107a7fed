"""What a registered key is, and how far apart two of them must be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lrdiff.errors import ConfigError, LrdiffError
from lrdiff.watermark.statistics import threshold

BITS = 48
OWNER_LENGTH = 200
ALPHA = 1e-6
"""False-positive rate at which keys are kept apart."""


class RegistryError(LrdiffError):
    """The registry of keys, its key file or its history cannot be used, or refuses what was asked."""


@dataclass(frozen=True, slots=True)
class Key:
    """A registered key.

    Attributes:
        id: Short name, drawn at random.
        owner: Whose key it is.
        bits: The bits, a string of 0 and 1. Secret, so it is left out of the text form.
        extractor_sha256: Content hash of the extractor that reads the key.
        created: UTC time, ISO 8601.
        revoked: UTC time since which the key counts no more, or None.
        reason: Why it was revoked.
        decoder_sha256: Hash of the decoder the key was put into, before it was marked.
        adapter_sha256: Hash of the adapter that puts the key in.
        given: Whether a person gave the bits; else they were drawn by the operating system's source of randomness.
    """

    id: str
    owner: str
    bits: str = field(repr=False)
    extractor_sha256: str
    created: str
    revoked: str | None = None
    reason: str | None = None
    decoder_sha256: str | None = None
    adapter_sha256: str | None = None
    given: bool = False


def minimum_distance(bits: int) -> int:
    """Return in how many bits two keys must differ at least.

    A picture that carries all bits of one key agrees with another one in n - d bits. With d = n - T + 1, where T is
    the threshold of one key at a false-positive rate of 1e-6, it is never detected as the other one's.
    """
    needed = threshold(bits, ALPHA)
    return 1 if needed is None else bits - needed + 1


def check_bits(bits: str) -> None:
    """Raise `ConfigError` unless `bits` is a string of 0 and 1."""
    if not bits or set(bits) - {"0", "1"}:
        raise ConfigError("the bits of a key are a string of 0 and 1, for example 48 of them")


def check_owner(owner: str) -> None:
    """Raise `ConfigError` unless `owner` is a printable name."""
    if not owner.strip() or len(owner) > OWNER_LENGTH or not owner.isprintable():
        raise ConfigError(f"owner {owner[:40]!r}: give a name of 1 to {OWNER_LENGTH} printable characters")


def check_sha256(name: str, value: str) -> None:
    """Raise `ConfigError` unless `value` is a SHA-256 in lower-case hexadecimal."""
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ConfigError(f"{name} {value[:70]!r} is no SHA-256; give its 64 hexadecimal digits")
