"""The history: every change as a signed entry that names the hash of the one before it.

    body_k = canonical JSON of {number, at, action, key, details, previous: hash_(k-1)}
    hash_k = SHA-256(body_k),   signature_k = Ed25519(hash_k)

A changed, removed, added or moved entry breaks the chain. Only cutting off the newest entries, together with the keys
they made, leaves a chain that is whole: whoever fears that keeps the newest hash elsewhere and asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, desc, insert, select

from lrdiff.watermark.keys.database import history
from lrdiff.watermark.keys.key import RegistryError
from lrdiff.watermark.keys.secret import Secret

FIRST = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    Attributes:
        number: From 1 on.
        at: UTC time, ISO 8601.
        action: "opened", "registered", "attached" or "revoked".
        key: Id of the key, or None.
        details: What was recorded.
        hash: Of this entry; the next one names it.
    """

    number: int
    at: str
    action: str
    key: str | None
    details: dict[str, Any]
    hash: str


def now() -> str:
    """Return the UTC time as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Writer:
    """Appends entries within one writing transaction."""

    def __init__(self, connection: Connection, secret: Secret) -> None:
        """Look up where the history ends."""
        newest = select(history.c.number, history.c.hash).order_by(desc(history.c.number)).limit(1)
        row = connection.execute(newest).first()
        self.number, self._previous = (row.number, row.hash) if row else (0, FIRST)
        self._connection, self._secret = connection, secret

    def append(self, action: str, key: str | None, at: str, details: Mapping[str, Any]) -> int:
        """Sign and store one entry; returns its number."""
        self.number += 1
        body = {"number": self.number, "at": at, "action": action, "key": key, "details": details}
        written = json.dumps(body | {"previous": self._previous}, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(written.encode())
        signature = self._secret.sign(digest.digest())
        row = {"number": self.number, "body": written, "hash": digest.hexdigest(), "signature": signature}
        self._connection.execute(insert(history), row)
        self._previous = digest.hexdigest()
        return self.number


def read(connection: Connection) -> Iterator[Any]:
    """Yield the stored rows in order."""
    yield from connection.execute(select(history).order_by(history.c.number))


def check(rows: Iterable[Any], secret: Secret) -> list[Entry]:
    """Check chain and signatures.

    Args:
        rows: Rows of the history in order, with `number`, `body`, `hash` and `signature`.
        secret: Whose signatures count.

    Raises:
        RegistryError: Names the first entry that is not as it was written.
    """
    entries: list[Entry] = []
    previous = FIRST
    for expected, row in enumerate(rows, start=1):
        if row.number != expected:
            raise _broken(expected, "is missing")
        digest = hashlib.sha256(row.body.encode())
        if digest.hexdigest() != row.hash:
            raise _broken(expected, "was changed")
        if not secret.signed(bytes(row.signature), digest.digest()):
            raise _broken(expected, "is not signed with this key file")
        body = json.loads(row.body)
        if body.pop("previous") != previous or body["number"] != expected:
            raise _broken(expected, "does not follow the one before it")
        entries.append(Entry(**body, hash=row.hash))
        previous = row.hash
    if not entries:
        raise _broken(1, "is missing")
    return entries


def _broken(number: int, what: str) -> RegistryError:
    return RegistryError(f"history: entry {number} {what}; somebody changed the registry, so restore a backup")
