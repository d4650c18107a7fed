"""The registry: make, look up, attach, revoke and identify keys."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, insert, select, update

from lrdiff.errors import ConfigError
from lrdiff.watermark.keys import history
from lrdiff.watermark.keys.audit import audit, registration
from lrdiff.watermark.keys.candidates import Candidates, table_of
from lrdiff.watermark.keys.database import (
    VERSION,
    Database,
    default_key_file,
    default_url,
    keys,
    metadata,
    registries,
)
from lrdiff.watermark.keys.history import Entry
from lrdiff.watermark.keys.key import (
    BITS,
    Key,
    RegistryError,
    check_bits,
    check_owner,
    check_sha256,
    minimum_distance,
)
from lrdiff.watermark.keys.secret import Secret, load_secret, make_secret

DRAWS = 200
"""A fresh key is near an old one with probability 1e-6 each; after so many draws the bits are used up."""


def open_registry(url: str | None = None, key_file: Path | None = None, *, create: bool = True) -> Registry:
    """Open a registry, or make an empty one.

    Args:
        url: An SQLite file, or `postgresql://USER@HOST/NAME`. None takes `$LRDIFF_REGISTRY`, else `keys.sqlite` in the
            user's data folder.
        key_file: The secret that opens the bits. None takes `$LRDIFF_KEY_FILE`, else `keys.key` in the user's data
            folder.
        create: Make the registry where there is none, and with it the key file; else that is an error.

    Raises:
        RegistryError: Unreachable, locked, damaged, of a newer version, absent, or the key file is lost or another.
        ConfigError: The URL is of another kind of database.
    """
    place = url or default_url()
    secret_path = key_file.expanduser() if key_file else default_key_file()
    database = Database(place)
    if database.exists():
        # A key file is only ever made together with its registry: a new one could not open what is there.
        return Registry(database, load_secret(secret_path))
    if not create:
        raise RegistryError(
            f"{database.name}: no registry of keys is there yet; lrdiff watermark keys new --owner NAME makes one, "
            "or name another with --registry"
        )
    secret = make_secret(secret_path)
    database.make_folder()
    with database.writing() as connection:
        set_up(database, connection, secret)
    return Registry(database, secret)


def set_up(database: Database, connection: Connection, secret: Secret) -> None:
    """Make the tables and the first entry of the history, unless another process was faster."""
    if database.has_tables(connection):
        return
    metadata.create_all(connection)
    identity = secrets.token_hex(16)
    row = {"version": VERSION, "id": identity, "fingerprint": secret.fingerprint}
    connection.execute(insert(registries), row)
    history.Writer(connection, secret).append("opened", None, history.now(), {"registry": identity, "version": VERSION})


class _Plain(NamedTuple):
    """A decrypted key, as the cache holds it."""

    id: str
    length: int
    bits: bytes
    extractor: str
    number: int


class Registry:
    """Keys in a database, opened with a key file. Use `open_registry`.

    Decrypted bits are held in memory only. Several processes may use one registry at the same moment: writers take
    turns, and what is refused for one is refused knowing what the other wrote.
    """

    def __init__(self, database: Database, secret: Secret) -> None:
        """Check that version and key file fit.

        Raises:
            RegistryError: They do not.
        """
        self.database, self._secret = database, secret
        self._plain: list[_Plain] = []
        with database.reading() as connection:
            rows = connection.execute(select(registries)).all()
        if len(rows) != 1:
            raise RegistryError(f"{self.name}: the registry's own record is damaged; restore a backup")
        if rows[0].version != VERSION:
            raise RegistryError(
                f"{self.name}: the registry has version {rows[0].version}, this lrdiff reads version {VERSION}; "
                "update lrdiff"
            )
        if rows[0].fingerprint != secret.fingerprint:
            raise RegistryError(
                f"{secret.path}: this key file does not open {self.name}: its fingerprint is {secret.fingerprint}, the "
                f"registry was made with {rows[0].fingerprint}; name the right one with --key-file"
            )

    @property
    def name(self) -> str:
        """Where the registry is, without a password."""
        return self.database.name

    @property
    def key_file(self) -> Path:
        """The key file it was opened with."""
        return self._secret.path

    def create(self, *, owner: str, extractor_sha256: str, bits: str | None = None, length: int = BITS) -> Key:
        """Register a new key.

        Args:
            owner: Whose it is.
            extractor_sha256: Content hash of the extractor that reads it.
            bits: The bits, if they must be certain ones. None draws them, as the statistics ask for.
            length: Number of bits to draw.

        Returns:
            The key, with its bits.

        Raises:
            ConfigError: Owner, bits or hash are malformed.
            RegistryError: The bits are too near to those of another key, or the registry cannot be written.
        """
        check_owner(owner)
        check_sha256("extractor_sha256", extractor_sha256)
        if bits is not None:
            check_bits(bits)
        elif length < 1:
            raise ConfigError(f"a key of {length} bits is impossible; give at least 1")
        with self.database.writing() as connection:
            self._update(connection)
            chosen = self._far(bits) if bits is not None else self._draw(length)
            at, key_id = history.now(), self._new_id()
            key = Key(key_id, owner, chosen, extractor_sha256, created=at, given=bits is not None)
            self._store(connection, key)
        return key

    def get(self, key_id: str) -> Key:
        """Return one key, revoked or not.

        Raises:
            RegistryError: No key has this id, or its bits cannot be decrypted.
        """
        with self.database.reading() as connection:
            return self._key(self._row(connection, key_id))

    def all(self) -> list[Key]:
        """Return all keys, oldest first, revoked ones too."""
        with self.database.reading() as connection:
            return [self._key(row) for row in connection.execute(select(keys).order_by(keys.c.number))]

    def attach(self, key_id: str, *, decoder_sha256: str | None = None, adapter_sha256: str | None = None) -> Key:
        """Record which decoder the key was put into, and the adapter that does it.

        Later calls replace earlier ones; the history keeps all.

        Raises:
            ConfigError: A hash is malformed, or none was given.
            RegistryError: No key has this id, or it is revoked.
        """
        given = {"decoder_sha256": decoder_sha256, "adapter_sha256": adapter_sha256}
        details = {name: value for name, value in given.items() if value is not None}
        if not details:
            raise ConfigError("nothing to attach; give decoder_sha256, adapter_sha256 or both")
        for name, value in details.items():
            check_sha256(name, value)
        return self._change(key_id, "attached", details, details)

    def revoke(self, key_id: str, reason: str) -> Key:
        """Let a key count no more. It stays in the registry, since pictures with it remain.

        Raises:
            ConfigError: The reason is empty.
            RegistryError: No key has this id, or it is revoked already.
        """
        if not reason.strip() or not reason.isprintable():
            raise ConfigError("a key is revoked for a reason; give one line, for example: --reason 'model withdrawn'")
        at = history.now()
        return self._change(key_id, "revoked", {"reason": reason}, {"revoked": at, "reason": reason}, at)

    def candidates(self, extractor_sha256: str | None = None, length: int = BITS) -> Candidates:
        """Return all keys that count, to compare a reading with.

        Args:
            extractor_sha256: Leave out the keys of other extractors; None takes all.
            length: Bits of a key; others are left out.
        """
        with self.database.reading() as connection:
            self._update(connection)
            revoked = set(connection.scalars(select(keys.c.number).where(keys.c.revoked.is_not(None))))
        valid = [item for item in self._plain if item.number not in revoked]
        fit = [item for item in valid if item.length == length and extractor_sha256 in (None, item.extractor)]
        table = table_of([item.bits for item in fit], length)
        return Candidates(tuple(item.id for item in fit), table, len(valid) - len(fit))

    def verify_history(self, head: str | None = None) -> list[Entry]:
        """Check that every entry is whole, signed and in its place, and that the keys are what the entries say.

        Args:
            head: Hash of an entry that was noted earlier; it must still be there. Without it, cutting off the newest
                entries together with their keys goes unseen.

        Returns:
            The entries, oldest first.

        Raises:
            RegistryError: Names what was changed.
        """
        with self.database.reading() as connection:
            return self.audit(connection, head)

    def audit(self, connection: Connection, head: str | None = None) -> list[Entry]:
        """Check as `verify_history` does, within a transaction."""
        return audit(connection, self._secret, self.name, head)

    def _change(
        self, key_id: str, action: str, details: dict[str, Any], values: dict[str, Any], at: str | None = None
    ) -> Key:
        """Change a key that counts, with its entry in the history."""
        with self.database.writing() as connection:
            row = self._row(connection, key_id)
            if row.revoked is not None:
                raise RegistryError(f"key {key_id} was revoked on {row.revoked} ({row.reason}); it cannot be {action}")
            history.Writer(connection, self._secret).append(action, key_id, at or history.now(), details)
            connection.execute(update(keys).where(keys.c.id == key_id).values(**values))
            return self._key(self._row(connection, key_id))

    def _row(self, connection: Connection, key_id: str) -> Any:
        row = connection.execute(select(keys).where(keys.c.id == key_id)).first()
        if row is None:
            count = connection.scalar(select(func.count()).select_from(keys))
            raise RegistryError(
                f"no key {key_id!r} among the {count} of {self.name}; lrdiff watermark keys list shows them"
            )
        return row

    def _key(self, row: Any) -> Key:
        return Key(
            id=row.id,
            owner=row.owner,
            bits=self._unseal(row).decode("ascii"),
            extractor_sha256=row.extractor_sha256,
            created=row.created,
            revoked=row.revoked,
            reason=row.reason,
            decoder_sha256=row.decoder_sha256,
            adapter_sha256=row.adapter_sha256,
            given=bool(row.given),
        )

    def _unseal(self, row: Any) -> bytes:
        bits = self._secret.unseal(bytes(row.sealed), row.id)
        if len(bits) != row.length:
            raise RegistryError(f"key {row.id}: has {len(bits)} bits, not {row.length}; its row was changed")
        return bits

    def _update(self, connection: Connection) -> None:
        """Decrypt the keys that were registered since the last time."""
        seen = self._plain[-1].number if self._plain else 0
        wanted = select(keys.c.id, keys.c.length, keys.c.sealed, keys.c.extractor_sha256, keys.c.number)
        rows = connection.execute(wanted.where(keys.c.number > seen).order_by(keys.c.number))
        fresh = [_Plain(row.id, row.length, self._unseal(row), row.extractor_sha256, row.number) for row in rows]
        self._plain.extend(fresh)

    def _store(self, connection: Connection, key: Key) -> None:
        """Write a key and its entry."""
        sealed = self._secret.seal(key.bits, key.id)
        values = {"owner": key.owner, "length": len(key.bits), "extractor_sha256": key.extractor_sha256}
        values["given"] = key.given
        writer = history.Writer(connection, self._secret)
        number = writer.append("registered", key.id, key.created, registration(sealed=sealed, **values))
        row = {"number": number, "id": key.id, "sealed": sealed, "created": key.created, **values}
        connection.execute(insert(keys), row)

    def _draw(self, length: int) -> str:
        """Draw bits that are far from every key."""
        table = self._table(length)
        for _ in range(DRAWS):
            bits = "".join(secrets.choice("01") for _ in range(length))
            if _nearest(bits, table)[1] >= minimum_distance(length):
                return bits
        raise RegistryError(
            f"{self.name}: no key of {length} bits was found that is far enough from the {len(table)} others; "
            "use more bits"
        )

    def _far(self, bits: str) -> str:
        """Return given bits if they are far from every key."""
        table, least = self._table(len(bits)), minimum_distance(len(bits))
        nearest, distance = _nearest(bits, table)
        if distance < least:
            near = [item for item in self._plain if item.length == len(bits)][nearest]
            raise RegistryError(
                f"these bits differ from key {near.id} in {distance} bits only, and at least {least} are needed to "
                "tell them apart; let lrdiff draw the bits"
            )
        return bits

    def _table(self, length: int) -> NDArray[np.uint8]:
        return table_of([item.bits for item in self._plain if item.length == length], length)

    def _new_id(self) -> str:
        taken = {item.id for item in self._plain}
        while (fresh := secrets.token_hex(5)) in taken:
            continue
        return fresh


def _nearest(bits: str, table: NDArray[np.uint8]) -> tuple[int, int]:
    """Return which key is nearest and in how many bits it differs; without keys nothing is near."""
    if not len(table):
        return -1, len(bits)
    distances = (table != np.frombuffer(bits.encode("ascii"), dtype=np.uint8) - ord("0")).sum(axis=1)
    nearest = int(distances.argmin())
    return nearest, int(distances[nearest])
