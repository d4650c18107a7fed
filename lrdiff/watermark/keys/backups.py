"""A registry as one file, and back: encrypted bits stay encrypted, and the key file is not in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select

from lrdiff.files import write_bytes
from lrdiff.watermark.keys.audit import audit
from lrdiff.watermark.keys.database import (
    VERSION,
    Database,
    default_key_file,
    default_url,
    history,
    keys,
    metadata,
    registries,
)
from lrdiff.watermark.keys.key import RegistryError
from lrdiff.watermark.keys.registry import Registry
from lrdiff.watermark.keys.secret import load_secret

FORMAT = "lrdiff registry backup 1"
TABLES = (registries, keys, history)


def backup(registry: Registry, path: Path) -> int:
    """Write all keys and the history to a new file, after checking the history.

    Returns:
        The number of keys.

    Raises:
        RegistryError: The history is broken, the file exists already or cannot be written.
    """
    if path.exists():
        raise RegistryError(f"{path}: is there already; give a new file for the backup")
    with registry.database.reading() as connection:
        registry.audit(connection)
        tables = {table.name: [_plain(row) for row in connection.execute(select(table))] for table in TABLES}
    try:
        write_bytes(path, (json.dumps({"format": FORMAT, **tables}, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise RegistryError(f"{path}: cannot be written ({error}); choose another place") from error
    return len(tables[keys.name])


def restore(path: Path, url: str | None = None, key_file: Path | None = None) -> Registry:
    """Make a registry from a backup, on the same kind of database or another. All of it, or nothing.

    Args:
        path: The backup.
        url: Where to; see `open_registry`. There must be no registry yet: nothing is written over.
        key_file: The key file of the registry that was backed up.

    Raises:
        RegistryError: The file is damaged or was changed, the key file is another one, or a registry is there.
    """
    rows = _read(path)
    secret = load_secret(key_file.expanduser() if key_file else default_key_file())
    if rows[registries.name][0]["fingerprint"] != secret.fingerprint:
        raise RegistryError(f"{secret.path}: this key file does not open {path}; name the right one with --key-file")
    database = Database(url or default_url())
    database.make_folder()
    with database.writing() as connection:
        if database.has_tables(connection):
            count = connection.scalar(select(func.count()).select_from(keys))
            raise RegistryError(
                f"{database.name}: a registry with {count} keys is there, and nothing is written over it; "
                "restore to another place with --registry, or move that one away first"
            )
        metadata.create_all(connection)
        for table in TABLES:
            if rows[table.name]:
                connection.execute(insert(table), rows[table.name])
        # Checked before the transaction ends: a backup that was changed leaves nothing behind.
        audit(connection, secret, str(path))
    return Registry(database, secret)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise RegistryError(f"{path}: is {content['format']!r}, and this lrdiff reads {FORMAT!r}; update lrdiff")
        rows = {table.name: [_stored(table, row) for row in content[table.name]] for table in TABLES}
        if rows[registries.name][0]["version"] != VERSION or len(rows[registries.name]) != 1:
            raise RegistryError(f"{path}: is of another version of the registry; update lrdiff")
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read ({error.strerror or error}); give a backup file") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RegistryError(f"{path}: is damaged or no backup of a registry ({error}); give another file") from error
    return rows


def _plain(row: Any) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    values = dict(row._mapping)
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes | memoryview) else v for k, v in values.items()}


def _stored(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as the table holds it, with exactly its columns."""
    binary = {"sealed", "signature"}
    return {c.name: base64.b64decode(row[c.name], validate=True) if c.name in binary else row[c.name] for c in table.c}
