"""Where registry and key file are, who may read them, and what is said when one of them cannot be used."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from lrdiff.errors import ConfigError
from lrdiff.watermark.keys import Registry, RegistryError, database, open_registry
from lrdiff.watermark.keys.database import default_key_file, default_url
from tests.lrdiff.watermark.keys.conftest import EXTRACTOR, Open


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A registry on SQLite with one key."""
    path = tmp_path / "keys.sqlite"
    open_registry(str(path), tmp_path / "keys.key").create(owner="studio", extractor_sha256=EXTRACTOR)
    return path


def test_the_default_places() -> None:
    assert default_url({"XDG_DATA_HOME": "/data"}) == "/data/lrdiff/keys.sqlite"
    assert default_key_file({"XDG_DATA_HOME": "/data"}) == Path("/data/lrdiff/keys.key")
    home = Path.home() / ".local/share/lrdiff"
    assert default_url({}) == default_url({"XDG_DATA_HOME": "relative"}) == str(home / "keys.sqlite")
    assert default_url({"LRDIFF_REGISTRY": "postgresql://h/n"}) == "postgresql://h/n"
    assert default_key_file({"LRDIFF_KEY_FILE": "/secret"}) == Path("/secret")


def test_the_environment_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LRDIFF_REGISTRY", raising=False)
    monkeypatch.delenv("LRDIFF_KEY_FILE", raising=False)
    open_registry()
    assert {path.name for path in (tmp_path / "data" / "lrdiff").iterdir()} == {"keys.sqlite", "keys.key"}
    monkeypatch.setenv("LRDIFF_REGISTRY", str(tmp_path / "team.sqlite"))
    open_registry()
    assert (tmp_path / "team.sqlite").is_file()


def test_importing_makes_nothing(tmp_path: Path) -> None:
    script = "import lrdiff.watermark.keys, sys; assert 'sqlalchemy' not in sys.modules, 1; dir(lrdiff.watermark.keys)"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_looking_makes_nothing(url: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RegistryError, match=r"no registry of keys is there yet.*keys new"):
        open_registry(url, tmp_path / "keys.key", create=False)
    assert sorted(tmp_path.iterdir()) == before


def test_the_key_file_is_the_users_alone(registry: Registry, key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert registry.key_file == key_file
    assert sorted(path.name for path in key_file.parent.iterdir() if "key" in path.suffix) == ["keys.key"]
    key_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        open_registry(registry.database._engine.url.render_as_string(hide_password=False), key_file)
    assert "chmod 600" in caplog.text


def test_a_key_file_is_never_written_over(place: Path, key_file: Path, tmp_path: Path) -> None:
    before = key_file.read_bytes()
    open_registry(str(tmp_path / "second.sqlite"), key_file)
    assert key_file.read_bytes() == before
    (tmp_path / "notes.txt").write_text("my shopping list\n")
    with pytest.raises(RegistryError, match="damaged or no lrdiff key file"):
        open_registry(str(tmp_path / "third.sqlite"), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "my shopping list\n"


def test_a_lost_or_wrong_key_file_is_told(registry: Registry, opened: Open, key_file: Path, tmp_path: Path) -> None:
    registry.create(owner="studio", extractor_sha256=EXTRACTOR)
    content = key_file.read_text()
    key_file.unlink()
    # No new one is made: it could not open what is there.
    with pytest.raises(RegistryError, match="key file is not there; put your copy"):
        opened()
    assert not key_file.exists()
    open_registry(str(tmp_path / "other.sqlite"), key_file)
    with pytest.raises(RegistryError, match=r"does not open .*fingerprint"):
        opened()
    for damaged in ("", "lrdiff key file 1\n", content[:-8], content.replace("file 1", "file 2"), "\xff"):
        key_file.write_text(damaged)
        with pytest.raises(RegistryError, match="key file"):
            opened()
    key_file.write_text(content)
    assert len(opened().all()) == 1


@pytest.mark.parametrize("content", [b"no database", b"", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_database_is_told(tmp_path: Path, place: Path, key_file: Path, content: bytes) -> None:
    place.write_bytes(content)
    with pytest.raises(RegistryError, match=str(place)):
        open_registry(str(place), key_file, create=False)


def test_a_newer_registry_is_told(registry: Registry, opened: Open) -> None:
    with registry.database.writing() as connection:
        connection.execute(text("UPDATE lrdiff_registry SET version = 2"))
    with pytest.raises(RegistryError, match="has version 2, this lrdiff reads version 1; update"):
        opened()


def hold(url: str, key_file: Path, ready: object, release: object) -> None:
    with open_registry(url, key_file).database.writing():
        ready.set()  # pyright: ignore[reportAttributeAccessIssue]
        release.wait(60)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_locked_registry_is_told(
    registry: Registry, url: str, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(url, key_file, ready, release))
    other.start()
    try:
        assert ready.wait(60)
        monkeypatch.setattr(database, "LOCK_SECONDS", 0.3)
        with pytest.raises(RegistryError, match=r"another process has locked the registry for 0\.3 s"):
            open_registry(url, key_file).create(owner="studio", extractor_sha256=EXTRACTOR)
    finally:
        release.set()
        other.join(60)
    assert open_registry(url, key_file).all() == []


def test_what_cannot_be_reached_is_told_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="server cannot be reached") as caught:
        open_registry("postgresql://me:hunter2@127.0.0.1:1/keys", tmp_path / "keys.key")
    assert "hunter2" not in str(caught.value)
    assert "me:***@127.0.0.1:1/keys" in str(caught.value)
    assert not (tmp_path / "keys.key").exists()


@pytest.mark.parametrize(
    "url", ["mysql://host/name", "sqlite://", "sqlite:///:memory:", "://", " ", "postgresql://h:notaport/x"]
)
def test_other_places_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="registry"):
        open_registry(url, tmp_path / "keys.key")
    assert list(tmp_path.iterdir()) == []


def test_an_sqlite_url_is_a_path(tmp_path: Path, place: Path, key_file: Path) -> None:
    assert len(open_registry(f"sqlite:///{place}", key_file, create=False).all()) == 1


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, place: Path, key_file: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="no key file can be made here"):
        open_registry(str(tmp_path / "new.sqlite"), tmp_path / "file" / "keys.key")
    with pytest.raises(RegistryError, match="cannot be made"):
        open_registry(str(tmp_path / "file" / "keys.sqlite"), key_file)
    with pytest.raises(RegistryError, match="cannot be opened"):
        open_registry(str(tmp_path), key_file)
    registry = open_registry(str(place), key_file)
    with pytest.raises(RegistryError, match="must not be written"):
        write_what_is_read_only(registry)
    assert len(registry.all()) == 1


def write_what_is_read_only(registry: Registry) -> None:
    with registry.database.writing() as connection:
        connection.execute(text("PRAGMA query_only = 1"))
        connection.execute(text("DELETE FROM lrdiff_keys"))
