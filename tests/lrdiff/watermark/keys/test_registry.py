"""Keys are made, found, attached, revoked and identified, on both databases, by several processes at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from lrdiff.errors import ConfigError
from lrdiff.watermark.keys import Registry, RegistryError, open_registry
from lrdiff.watermark.keys import registry as module
from lrdiff.watermark.keys.key import minimum_distance
from lrdiff.watermark.statistics import corrected, p_value, threshold
from tests.lrdiff.watermark.keys.conftest import EXTRACTOR, Open

OTHER = "0" * 64


def flip(bits: str, count: int) -> str:
    return "".join("10"[int(bit)] if i < count else bit for i, bit in enumerate(bits))


def test_a_key_is_made_and_found_again(registry: Registry, opened: Open) -> None:
    key = registry.create(owner="studio é", extractor_sha256=EXTRACTOR)
    assert len(key.bits) == 48
    assert set(key.bits) == {"0", "1"}
    assert not key.given
    assert (key.revoked, key.adapter_sha256, key.decoder_sha256) == (None, None, None)
    assert opened().get(key.id) == key
    assert opened().all() == [key]
    assert len(registry.create(owner="studio", extractor_sha256=EXTRACTOR, length=100).bits) == 100


def test_bits_are_not_in_the_text_form_nor_in_the_database(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "keys.sqlite"), tmp_path / "keys.key")
    key = registry.create(owner="studio", extractor_sha256=EXTRACTOR)
    assert key.bits not in repr(key)
    assert key.bits not in repr(registry.candidates())
    stored = (tmp_path / "keys.sqlite").read_bytes()
    packed = np.packbits(np.array(list(key.bits), dtype=np.uint8)).tobytes()
    assert b"studio" in stored
    assert key.bits.encode() not in stored
    assert packed not in stored


def test_hashes_are_attached(registry: Registry, opened: Open) -> None:
    key = registry.create(owner="studio", extractor_sha256=EXTRACTOR)
    registry.attach(key.id, adapter_sha256="a" * 64)
    registry.attach(key.id, decoder_sha256="d" * 64)
    assert registry.attach(key.id, adapter_sha256="b" * 64) == opened().get(key.id)
    assert (opened().get(key.id).adapter_sha256, opened().get(key.id).decoder_sha256) == ("b" * 64, "d" * 64)
    for wrong in ({}, {"adapter_sha256": "xyz"}, {"decoder_sha256": "A" * 64}):
        with pytest.raises(ConfigError, match="give"):
            registry.attach(key.id, **wrong)
    assert [entry.action for entry in registry.verify_history()] == ["opened", "registered", *["attached"] * 3]


def test_a_revoked_key_stays_but_counts_no_more(registry: Registry, opened: Open) -> None:
    keys = [registry.create(owner="studio", extractor_sha256=EXTRACTOR) for _ in range(3)]
    assert registry.candidates().ids == tuple(key.id for key in keys)
    gone = opened().revoke(keys[1].id, "model withdrawn")
    assert gone.revoked is not None
    assert gone.reason == "model withdrawn"
    assert registry.get(gone.id) == gone
    assert registry.candidates().ids == (keys[0].id, keys[2].id)
    with pytest.raises(RegistryError, match=r"revoked on .*model withdrawn"):
        registry.revoke(gone.id, "again")
    with pytest.raises(RegistryError, match="revoked"):
        registry.attach(gone.id, adapter_sha256="a" * 64)
    with pytest.raises(ConfigError, match="reason"):
        registry.revoke(keys[0].id, " ")
    # Its pictures are still around, so its bits are not given to anybody else.
    with pytest.raises(RegistryError, match="0 bits only"):
        registry.create(owner="studio", extractor_sha256=EXTRACTOR, bits=gone.bits)


def test_keys_keep_their_distance(registry: Registry) -> None:
    key = registry.create(owner="studio", extractor_sha256=EXTRACTOR)
    assert minimum_distance(48) == 8
    with pytest.raises(RegistryError, match=rf"from key {key.id} in 7 bits only, and at least 8"):
        registry.create(owner="other", extractor_sha256=EXTRACTOR, bits=flip(key.bits, 7))
    near = registry.create(owner="other", extractor_sha256=EXTRACTOR, bits=flip(key.bits, 8))
    assert near.given
    assert len(registry.all()) == 2


@pytest.mark.parametrize("bits", [24, 48, 100])
def test_a_full_match_with_one_key_is_none_with_another(bits: int) -> None:
    needed = threshold(bits, 1e-6)
    assert needed is not None
    assert bits - minimum_distance(bits) == needed - 1


def test_a_full_space_is_told(registry: Registry) -> None:
    assert minimum_distance(2) == 1
    made = {registry.create(owner="studio", extractor_sha256=EXTRACTOR, length=2).bits for _ in range(4)}
    assert made == {"00", "01", "10", "11"}
    with pytest.raises(RegistryError, match="use more bits"):
        registry.create(owner="studio", extractor_sha256=EXTRACTOR, length=2)
    assert len(registry.all()) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"owner": " "}, "owner"),
        ({"owner": "a\0b"}, "owner"),
        ({"owner": "x" * 201}, "owner"),
        ({"bits": "01012"}, "0 and 1"),
        ({"bits": ""}, "0 and 1"),
        ({"length": 0}, "at least 1"),
        ({"extractor_sha256": "short"}, "SHA-256"),
    ],
)
def test_bad_input_is_refused(registry: Registry, change: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        registry.create(**{"owner": "studio", "extractor_sha256": EXTRACTOR, **change})  # pyright: ignore
    assert registry.all() == []


@pytest.mark.parametrize("key_id", ["", "0123456789", "x' OR '1'='1"])
def test_an_unknown_key_is_told(registry: Registry, key_id: str) -> None:
    with pytest.raises(RegistryError, match=r"no key .* among the 0 of"):
        registry.get(key_id)
    with pytest.raises(RegistryError, match="no key"):
        registry.revoke(key_id, "because")


def test_identification(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="no key to compare"):
        registry.candidates().identify("0" * 48)
    keys = [registry.create(owner=f"user {n}", extractor_sha256=EXTRACTOR) for n in range(20)]
    registry.create(owner="other extractor", extractor_sha256=OTHER)
    registry.create(owner="more bits", extractor_sha256=EXTRACTOR, length=100)
    found = registry.candidates(EXTRACTOR).identify(flip(keys[7].bits, 3))
    assert (found.key, found.matches) == (keys[7].id, 45)
    assert found.p_value == p_value(45, 48)
    assert found.p_corrected == corrected(p_value(45, 48), keys=20)
    assert registry.candidates(EXTRACTOR).elsewhere == 2
    assert len(registry.candidates().ids) == 21
    with pytest.raises(ConfigError, match="48 bits"):
        registry.candidates().identify("01")


def test_a_hundred_thousand_keys_are_looked_up_in_a_second(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "keys.sqlite"), tmp_path / "keys.key")
    secret = registry._secret
    bits = np.random.default_rng(0).integers(0, 2, (100_000, 48))
    words = ["".join(map(str, row)) for row in bits.tolist()]
    rows = [
        (n, f"{n:010x}", "owner", 48, secret.seal(word, f"{n:010x}"), EXTRACTOR, "2026", False)
        for n, word in enumerate(words, start=2)
    ]
    connection = sqlite3.connect(tmp_path / "keys.sqlite")
    names = "number, id, owner, length, sealed, extractor_sha256, created, given"
    connection.executemany(f"INSERT INTO lrdiff_keys ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    registry.candidates(EXTRACTOR)  # decrypts, once for each open registry
    # Processor time, since other work may keep the machine busy.
    began = time.process_time()
    found = registry.candidates(EXTRACTOR).identify(flip(words[77_777], 2))
    seconds = time.process_time() - began
    assert (found.key, found.matches) == (f"{77_779:010x}", 46)
    assert found.p_corrected == pytest.approx(1e5 * p_value(46, 48), rel=1e-3)
    assert seconds < 1.0


def register_many(url: str, key_file: Path, count: int) -> None:
    registry = open_registry(url, key_file)
    for number in range(count):
        registry.create(owner=f"process {number}", extractor_sha256=EXTRACTOR)


def test_processes_that_register_at_once_lose_nothing(url: str, key_file: Path) -> None:
    # Even the registry itself and its key file are made by whoever comes first.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=register_many, args=(url, key_file, 8)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    registry = open_registry(url, key_file, create=False)
    keys = registry.all()
    assert len(keys) == len({key.id for key in keys}) == len({key.bits for key in keys}) == 24
    entries = registry.verify_history()
    assert [entry.number for entry in entries] == list(range(1, 26))
    table = registry.candidates().table
    distances = (table[:, None] != table[None]).sum(axis=2) + 48 * np.eye(24, dtype=np.int64)
    assert distances.min() >= 8


def test_what_fails_midway_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "registration", fail)
    with pytest.raises(KeyboardInterrupt):
        registry.create(owner="studio", extractor_sha256=EXTRACTOR)
    monkeypatch.undo()
    assert registry.all() == []
    assert len(registry.verify_history()) == 1
    assert registry.create(owner="studio", extractor_sha256=EXTRACTOR) == registry.all()[0]


def test_a_damaged_row_is_told_and_hides_no_other(registry: Registry, opened: Open) -> None:
    keys = [registry.create(owner="studio", extractor_sha256=EXTRACTOR) for _ in range(3)]
    with registry.database.writing() as connection:
        one, two = keys[0].id, keys[1].id
        swap = "UPDATE lrdiff_keys SET sealed = (SELECT sealed FROM lrdiff_keys WHERE id = :b) WHERE id = :a"
        connection.execute(text(swap), {"a": one, "b": two})
    for read in (lambda: opened().get(one), lambda: opened().candidates(), lambda: opened().all()):
        with pytest.raises(RegistryError, match=rf"key {one}: its bits cannot be decrypted"):
            read()
    assert opened().get(two) == keys[1]
    with pytest.raises(RegistryError, match=rf"{one}: sealed_sha256 was changed"):
        opened().verify_history()
