"""The key of a run: drawn and registered, found again, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrdiff.errors import ConfigError
from lrdiff.watermark.extractor import load
from lrdiff.watermark.keys import RegistryError, open_registry
from tests.tiny import build_tiny_mark
from tests.trainers.watermark.conftest import Configure
from trainers.watermark import key
from trainers.watermark.config import WatermarkSettings


def registered(configure: Configure, tmp_path: Path) -> WatermarkSettings:
    """Return settings of a run whose key was drawn as `lrdiff train` does it."""
    places = {"registry": str(tmp_path / "keys.sqlite"), "key_file": tmp_path / "keys.key"}
    config = configure(bits_file=None, owner="studio", **places)
    return config.settled().method


def test_a_key_is_drawn_registered_and_found_again(configure: Configure, tmp_path: Path) -> None:
    settings = registered(configure, tmp_path)
    extractor = load(settings.extractor_path)
    stored = open_registry(settings.registry, settings.key_file).get(settings.key)
    assert (stored.owner, stored.given, stored.extractor_sha256) == ("studio", False, extractor.sha256())
    found = key.find(settings, extractor)
    assert (found.id, found.bits) == (stored.id, stored.bits)
    assert found.bits not in repr(found)
    assert found.bits not in settings.model_dump_json()


def test_revoked_foreign_and_unknown_keys_are_refused(configure: Configure, tmp_path: Path) -> None:
    settings = registered(configure, tmp_path)
    extractor = load(settings.extractor_path)
    other = load(build_tiny_mark(tmp_path / "other", seed=1) / "extractor.safetensors")
    with pytest.raises(ConfigError, match="is for extractor"):
        key.find(settings, other)
    with pytest.raises(RegistryError, match="no key 'nope'"):
        key.find(settings.model_copy(update={"key": "nope"}), extractor)
    with pytest.raises(RegistryError, match="no registry"):
        key.find(settings.model_copy(update={"registry": str(tmp_path / "absent.sqlite")}), extractor)
    open_registry(settings.registry, settings.key_file).revoke(settings.key, "withdrawn")
    with pytest.raises(ConfigError, match="was revoked"):
        key.find(settings, extractor)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.txt", b"0101", "4 bits, the extractor reads 8"),
        ("a.txt", b"", "one string of 0 and 1"),
        ("a.txt", b"0102", "one string of 0 and 1"),
        ("a.txt", b"\xff\xfe0\x001\x00", "plain text"),
        ("key-01001011.txt", b"01001011\n", "rename the file"),
        (None, b"", "cannot be read"),
    ],
)
def test_unusable_files_are_refused(
    configure: Configure, tmp_path: Path, name: str | None, content: bytes, word: str
) -> None:
    path = tmp_path / (name or "absent.txt")
    if name:
        path.write_bytes(content)
    settings = configure(bits_file=path).method
    with pytest.raises(ConfigError, match=word):
        key.find(settings, load(settings.extractor_path))


def test_without_a_key_fresh_bits_are_tried_and_kept_nowhere(configure: Configure) -> None:
    settings = configure(bits_file=None).method
    extractor = load(settings.extractor_path)
    found = [key.find(settings, extractor) for _ in range(20)]
    assert {item.id for item in found} == {""}
    assert len({item.bits for item in found}) > 5
