"""Do the keys agree with their signed history?"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, select

from lrdiff.watermark.keys import history
from lrdiff.watermark.keys.database import keys, registries
from lrdiff.watermark.keys.history import Entry
from lrdiff.watermark.keys.key import RegistryError
from lrdiff.watermark.keys.secret import Secret

COLUMNS = ("number", "owner", "length", "extractor_sha256", "created", "given")
CHANGING = ("revoked", "reason", "decoder_sha256", "adapter_sha256")


def registration(*, owner: str, length: int, sealed: bytes, extractor_sha256: str, given: bool) -> dict[str, Any]:
    """Return what the history says of a new key: everything, the bits only as a hash of their encrypted form."""
    return {
        "owner": owner,
        "length": length,
        "sealed_sha256": hashlib.sha256(sealed).hexdigest(),
        "extractor_sha256": extractor_sha256,
        "given": given,
    }


def audit(connection: Connection, secret: Secret, name: str, head: str | None = None) -> list[Entry]:
    """Check the history's chain, then that it leads to exactly the keys that are stored.

    Args:
        connection: A transaction that sees one state.
        secret: Whose signatures count.
        name: The registry, for messages.
        head: Hash of an entry that must be there, or None.

    Returns:
        The entries, oldest first.

    Raises:
        RegistryError: Names the first thing that was changed.
    """
    entries = history.check(history.read(connection), secret)
    identity = connection.scalar(select(registries.c.id))
    if entries[0].action != "opened" or entries[0].details.get("registry") != identity:
        raise RegistryError(f"{name}: the history is that of another registry; restore a backup")
    if head is not None and head not in {entry.hash for entry in entries}:
        raise RegistryError(
            f"{name}: no entry of the history has the hash {head[:16]}...; newer entries were cut off, or it is the "
            "hash of another registry. Restore a backup"
        )
    told = _replay(entries)
    stored = {row.id: _state(row) for row in connection.execute(select(keys))}
    for key_id in sorted(told.keys() | stored.keys()):
        if key_id not in stored:
            raise RegistryError(f"{name}: key {key_id} is in the history but was removed; restore a backup")
        if key_id not in told:
            raise RegistryError(f"{name}: key {key_id} was added past the history; restore a backup")
        wrong = [field for field, value in told[key_id].items() if stored[key_id][field] != value]
        if wrong:
            raise RegistryError(
                f"{name}: key {key_id}: {', '.join(wrong)} was changed past the history; restore a backup"
            )
    return entries


def _replay(entries: list[Entry]) -> dict[str, dict[str, Any]]:
    """Return the state of every key after all entries."""
    state: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.key is None:
            continue
        if entry.action == "registered":
            state[entry.key] = entry.details | {"number": entry.number, "created": entry.at} | dict.fromkeys(CHANGING)
        elif entry.action == "revoked":
            state[entry.key] |= {"revoked": entry.at, **entry.details}
        else:
            state[entry.key] |= entry.details
    return state


def _state(row: Any) -> dict[str, Any]:
    """Return a stored key in the words of the history."""
    state = {name: getattr(row, name) for name in (*COLUMNS, *CHANGING)}
    return state | {"sealed_sha256": hashlib.sha256(bytes(row.sealed)).hexdigest(), "given": bool(row.given)}
