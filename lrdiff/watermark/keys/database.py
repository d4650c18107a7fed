"""The database under the registry: where it is, its tables, its transactions, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lrdiff.errors import ConfigError
from lrdiff.watermark.keys.key import RegistryError

VERSION = 1
REGISTRY_VARIABLE, KEY_FILE_VARIABLE = "LRDIFF_REGISTRY", "LRDIFF_KEY_FILE"
LOCK_SECONDS = 20.0
"""How long to wait for another process that is writing."""
CONNECT_SECONDS = 10
ADVISORY_LOCK = 0x6C7264696666
"""Number of the lock that writers on PostgreSQL hold: "lrdiff" in ASCII."""

metadata = MetaData()
registries = Table(
    "lrdiff_registry",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
)
keys = Table(
    "lrdiff_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("length", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("extractor_sha256", String(64), nullable=False),
    Column("created", String(40), nullable=False),
    Column("revoked", String(40)),
    Column("reason", Text),
    Column("decoder_sha256", String(64)),
    Column("adapter_sha256", String(64)),
    Column("given", Boolean, nullable=False),
)
history = Table(
    "lrdiff_history",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("signature", LargeBinary, nullable=False),
)


def data_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's folder for data: `$XDG_DATA_HOME/lrdiff`, by default `~/.local/share/lrdiff`."""
    given = environment.get("XDG_DATA_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".local" / "share") / "lrdiff"


def default_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return `$LRDIFF_REGISTRY`, or the SQLite file in the user's data folder."""
    return environment.get(REGISTRY_VARIABLE) or str(data_folder(environment) / "keys.sqlite")


def default_key_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return `$LRDIFF_KEY_FILE`, or the key file in the user's data folder."""
    return Path(environment.get(KEY_FILE_VARIABLE) or data_folder(environment) / "keys.key").expanduser()


class Database:
    """A place with the three tables, or where they can be made.

    Attributes:
        name: The place as messages show it, without a password.
        file: The SQLite file, or None.
    """

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Args:
            url: A path of an SQLite file, `sqlite:///PATH`, or `postgresql://USER@HOST/NAME`.

        Raises:
            ConfigError: Another kind of database, or no URL.
        """
        parsed = _parse(url)
        self.file = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
        self.name = str(self.file) if self.file else parsed.render_as_string(hide_password=True)
        sqlite = {"timeout": LOCK_SECONDS}
        postgres = {"connect_timeout": CONNECT_SECONDS}
        # No pool: a registry is used now and then, and nothing stays open or locked in between.
        self._engine = create_engine(parsed, poolclass=NullPool, connect_args=sqlite if self.file else postgres)
        if self.file:
            # Python's own transactions begin too late to lock before reading.
            event.listen(self._engine, "connect", _without_implicit_transactions)
            event.listen(self._engine, "begin", _begin)

    def exists(self) -> bool:
        """Tell whether the registry's tables are there.

        Raises:
            RegistryError: Unreachable, or no database.
        """
        if self.file and not self.file.exists():
            return False
        with self.reading() as connection:
            return self.has_tables(connection)

    def make_folder(self) -> None:
        """Make the folder that the registry's file lies in, for its owner alone. Raises `RegistryError`."""
        if self.file:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise RegistryError(f"{self.file.parent}: cannot be made ({error}); choose another place") from error

    def has_tables(self, connection: Connection) -> bool:
        """Tell whether the registry's tables are there, within a transaction."""
        dialect: Dialect = connection.dialect
        return dialect.has_table(connection, registries.name)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Begin a transaction that sees one unchanging state."""
        with self._told(), self._engine.connect() as connection:
            if not self.file:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Begin a transaction that holds the registry's write lock from its first moment; it waits for others."""
        with self._told(), self._engine.connect() as connection:
            connection = connection.execution_options(lrdiff_writes=True)
            with connection.begin():
                if not self.file:
                    connection.execute(text(f"SET LOCAL lock_timeout = {int(LOCK_SECONDS * 1000)}"))
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
                yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn the database's errors into one sentence with the place and what to do."""
        try:
            yield
        except SQLAlchemyError as error:
            raise RegistryError(f"{self.name}: {_explain(error)}") from error
        except ImportError as error:
            raise RegistryError(f"{self.name}: {error.name or 'a package'} is not installed; install it") from error


def _parse(url: str) -> URL:
    if "://" not in url:
        if not url.strip():
            raise ConfigError("the registry's place is empty; give a file or postgresql://USER@HOST/NAME")
        return URL.create("sqlite", database=os.path.abspath(Path(url).expanduser()))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("the registry's URL cannot be read; write postgresql://USER@HOST/NAME or a file") from error
    kind = parsed.get_backend_name()
    if kind == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite", database=os.path.abspath(Path(parsed.database).expanduser()))
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(f"a registry cannot be kept in {kind} like this; give a file or postgresql://USER@HOST/NAME")


def _without_implicit_transactions(connection: object, record: object) -> None:
    setattr(connection, "isolation_level", None)  # noqa: B010 - the driver's type is not known here


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("lrdiff_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _explain(error: SQLAlchemyError) -> str:
    """Say what went wrong in the database and what to do."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    words = " ".join(str(cause).split())
    lower = words.lower()
    if "database is locked" in lower or "lock timeout" in lower:
        return f"another process has locked the registry for {LOCK_SECONDS:g} s; let it end, then try again"
    if "not a database" in lower or "malformed" in lower or "disk image" in lower:
        return f"is no registry or is damaged ({words}); restore a backup: lrdiff watermark keys restore FILE"
    if "unable to open" in lower:
        return f"cannot be opened ({words}); check the folder and its rights"
    if "readonly" in lower or "read-only" in lower or "permission denied" in lower:
        return f"must not be written ({words}); check its rights"
    if "connection" in lower or "could not" in lower or "resolve" in lower:
        return f"the server cannot be reached ({words}); check the address and that it runs"
    return f"the database refused ({words})"
