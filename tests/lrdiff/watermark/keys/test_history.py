"""Whatever is changed behind the registry's back is found, and a backup brings everything back or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from lrdiff.watermark.keys import Registry, RegistryError, backup, open_registry, restore
from tests.lrdiff.watermark.keys.conftest import EXTRACTOR, Open


def change(registry: Registry, statement: str, **values: Any) -> None:
    with registry.database.writing() as connection:
        assert connection.execute(text(statement), values).rowcount == 1


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """Three keys; the second one attached, then revoked."""
    keys = [registry.create(owner=f"user {n}", extractor_sha256=EXTRACTOR) for n in range(3)]
    registry.attach(keys[1].id, adapter_sha256="a" * 64)
    registry.revoke(keys[1].id, "leaked")
    return registry


def test_the_history_tells_everything_but_the_bits(filled: Registry) -> None:
    entries = filled.verify_history()
    assert [entry.action for entry in entries] == ["opened", *["registered"] * 3, "attached", "revoked"]
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[4].details == {"adapter_sha256": "a" * 64}
    assert entries[5].details == {"reason": "leaked"}
    assert entries[1].details["owner"] == "user 0"
    assert not any(key.bits in json.dumps([str(entry) for entry in entries]) for key in filled.all())
    for entry in entries:
        assert filled.verify_history(head=entry.hash) == entries


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE lrdiff_history SET body = replace(body, 'user 0', 'user 9') WHERE number = 2", "entry 2 was changed"),
        (
            "UPDATE lrdiff_history SET hash = (SELECT hash FROM lrdiff_history WHERE number = 3) WHERE number = 2",
            "2 was",
        ),
        ("DELETE FROM lrdiff_history WHERE number = 4", "entry 4 is missing"),
        ("DELETE FROM lrdiff_history WHERE number = 1", "entry 1 is missing"),
        ("DELETE FROM lrdiff_history WHERE number = 6", "revoked, reason was changed"),
        ("UPDATE lrdiff_history SET number = 7 WHERE number = 5", "entry 5 is missing"),
        ("UPDATE lrdiff_keys SET owner = 'thief' WHERE number = 2", "owner was changed"),
        ("UPDATE lrdiff_keys SET revoked = NULL WHERE number = 3", "revoked was changed"),
        ("UPDATE lrdiff_keys SET adapter_sha256 = 'b' WHERE number = 3", "adapter_sha256 was changed"),
        ("DELETE FROM lrdiff_keys WHERE number = 2", "was removed"),
        ("UPDATE lrdiff_keys SET id = 'other' WHERE number = 2", "removed|added"),
        ("UPDATE lrdiff_registry SET id = 'other' WHERE version = 1", "another registry"),
    ],
)
def test_a_change_is_found(filled: Registry, statement: str, reason: str) -> None:
    change(filled, statement)
    with pytest.raises(RegistryError, match=reason):
        filled.verify_history()


def test_an_entry_with_a_new_hash_still_lacks_the_signature(filled: Registry, tmp_path: Path) -> None:
    import hashlib

    with filled.database.reading() as connection:
        body = connection.scalar(text("SELECT body FROM lrdiff_history WHERE number = 6"))
    forged = str(body).replace("leaked", "sold")
    digest = hashlib.sha256(forged.encode()).hexdigest()
    change(filled, "UPDATE lrdiff_history SET body = :b, hash = :h WHERE number = 6", b=forged, h=digest)
    with pytest.raises(RegistryError, match="entry 6 is not signed with this key file"):
        filled.verify_history()


def test_a_cut_off_end_is_found_by_whoever_noted_the_head(filled: Registry) -> None:
    head = filled.verify_history()[-1].hash
    key = filled.create(owner="last", extractor_sha256=EXTRACTOR)
    later = filled.verify_history(head=head)[-1].hash
    change(filled, "DELETE FROM lrdiff_history WHERE number = 7")
    change(filled, "DELETE FROM lrdiff_keys WHERE id = :id", id=key.id)
    assert len(filled.verify_history(head=head)) == 6
    with pytest.raises(RegistryError, match="cut off"):
        filled.verify_history(head=later)


def test_a_backup_brings_everything_back(filled: Registry, key_file: Path, tmp_path: Path) -> None:
    assert backup(filled, tmp_path / "backup.json") == 3
    content = (tmp_path / "backup.json").read_text()
    assert not any(key.bits in content for key in filled.all())
    copy = restore(tmp_path / "backup.json", str(tmp_path / "new" / "keys.sqlite"), key_file)
    assert copy.all() == filled.all()
    assert copy.verify_history() == filled.verify_history()
    # The copy goes on where the original was.
    copy.create(owner="new", extractor_sha256=EXTRACTOR)
    assert len(copy.verify_history()) == 7


def test_a_backup_of_sqlite_is_restored_to_the_other_database(url: str, key_file: Path, tmp_path: Path) -> None:
    first = open_registry(str(tmp_path / "first.sqlite"), key_file)
    first.create(owner="studio é", extractor_sha256=EXTRACTOR)
    backup(first, tmp_path / "backup.json")
    assert restore(tmp_path / "backup.json", url, key_file).all() == first.all()


def test_nothing_is_written_over(filled: Registry, url: str, key_file: Path, tmp_path: Path) -> None:
    backup(filled, tmp_path / "backup.json")
    before = (tmp_path / "backup.json").read_bytes()
    with pytest.raises(RegistryError, match="is there already"):
        backup(filled, tmp_path / "backup.json")
    assert (tmp_path / "backup.json").read_bytes() == before
    filled.create(owner="later", extractor_sha256=EXTRACTOR)
    with pytest.raises(RegistryError, match="registry with 4 keys is there"):
        restore(tmp_path / "backup.json", url, key_file)
    assert len(filled.all()) == 4


def test_a_changed_backup_leaves_nothing_behind(filled: Registry, key_file: Path, tmp_path: Path) -> None:
    path, place = tmp_path / "backup.json", tmp_path / "new.sqlite"
    backup(filled, path)
    good = path.read_text()
    for old, new, reason in (
        ("user 0", "user 9", "changed"),
        ("leaked", "sold", "changed"),
        ('"lrdiff registry backup 1"', '"lrdiff registry backup 2"', "update lrdiff"),
        ('"sealed"', '"sealde"', "damaged or no backup"),
        ("{", "", "damaged or no backup"),
    ):
        path.write_text(good.replace(old, new))
        with pytest.raises(RegistryError, match=reason):
            restore(path, str(place), key_file)
    path.write_text(good)
    assert len(restore(path, str(place), key_file).all()) == 3
    with pytest.raises(RegistryError, match="cannot be read"):
        restore(tmp_path / "none.json", str(place), key_file)


def test_a_broken_history_is_not_backed_up(filled: Registry, tmp_path: Path) -> None:
    change(filled, "DELETE FROM lrdiff_history WHERE number = 4")
    with pytest.raises(RegistryError, match="entry 4"):
        backup(filled, tmp_path / "backup.json")
    assert not (tmp_path / "backup.json").exists()


def test_a_backup_needs_its_own_key_file(filled: Registry, opened: Open, tmp_path: Path) -> None:
    backup(filled, tmp_path / "backup.json")
    open_registry(str(tmp_path / "other.sqlite"), tmp_path / "other.key")
    with pytest.raises(RegistryError, match="does not open"):
        restore(tmp_path / "backup.json", str(tmp_path / "new.sqlite"), tmp_path / "other.key")
    with pytest.raises(RegistryError, match="key file is not there"):
        restore(tmp_path / "backup.json", str(tmp_path / "new.sqlite"), tmp_path / "none.key")
    assert not (tmp_path / "new.sqlite").exists()
