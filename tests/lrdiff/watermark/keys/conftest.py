"""Empty registries, on SQLite and on a PostgreSQL server of the test's own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from lrdiff.watermark.keys import Registry, open_registry

EXTRACTOR = "e" * 64
SERVER = "LRDIFF_TEST_POSTGRES"
"""Names a running server to test with, as postgresql://USER@HOST/NAME; a schema is made in it for every test."""
Open = Callable[[], Registry]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the URL of a running PostgreSQL server's first database."""
    if given := os.environ.get(SERVER):
        yield given
        return
    initdb, server = _program("initdb"), _program("postgres")
    if not initdb or not server:
        pytest.skip("no PostgreSQL server is installed here, so the registry is tested on SQLite only")
    yield from start_server(initdb, server)


def _program(name: str) -> str | None:
    """Return where a program of the server is; Debian keeps them off the path."""
    folders = [os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return shutil.which(name, path=os.pathsep.join(folders))


def start_server(initdb: str, postgres: str) -> Iterator[str]:
    """Run a throw-away server that listens on a socket in its own folder.

    Args:
        initdb: The program that makes a database.
        postgres: The server.
    """
    folder = Path(tempfile.mkdtemp(prefix="lrdiff-pg-"))
    # PostgreSQL refuses to run as root.
    account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if account:
        shutil.chown(folder, "nobody")
    words = ["-U", "lrdiff", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([initdb, "-D", folder / "data", *words], check=True, **quiet, **account)  # pyright: ignore
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen([postgres, "-D", folder / "data", *options], **quiet, **account)  # pyright: ignore
    try:
        url = f"postgresql://lrdiff@/postgres?host={folder}"
        _wait(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=30)
        shutil.rmtree(folder)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    for _ in range(100):
        assert server.poll() is None, "the PostgreSQL server ended"
        try:
            engine.connect().close()
        except OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the PostgreSQL server did not answer")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the place of a registry that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "keys.sqlite")
    server: str = request.getfixturevalue("postgres")
    schema = f"lrdiff_{secrets.token_hex(6)}"
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    return f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.key"


@pytest.fixture
def opened(url: str, key_file: Path) -> Open:
    """Open the registry, again and again."""
    return lambda: open_registry(url, key_file)


@pytest.fixture
def registry(opened: Open) -> Registry:
    return opened()
