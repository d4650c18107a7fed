"""The example mark: registered once, read back from pictures of its decoder, refused where it cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from lrdiff import backbones
from lrdiff.assets import MODELS
from lrdiff.decoders import load_vae
from lrdiff.errors import ArtifactError, ConfigError, ModelError
from lrdiff.images import to_image
from lrdiff.watermark.example import ADAPTER, BITS, FOLDER, OWNER, install
from lrdiff.watermark.extractor import load
from lrdiff.watermark.keys import Registry, open_registry
from lrdiff.watermark.verdict import Verdict
from lrdiff.watermark.verifier import verify_many
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes

READER = MODELS / "extractor"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(str(tmp_path / "keys.sqlite"), tmp_path / "keys.key")


def png(picture: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    to_image(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_it_is_ready_once_and_for_all(registry: Registry, tmp_path: Path) -> None:
    reader = load(READER).sha256()
    first = install(registry, reader, tmp_path / "decoders")
    assert first.key.owner == OWNER
    assert first.key.bits == (FOLDER / BITS).read_text().strip()
    assert first.key.decoder_sha256 is not None
    assert first.decoder == tmp_path / "decoders" / first.key.id
    before = {path: path.stat().st_mtime_ns for path in first.decoder.iterdir()}
    assert install(registry, reader, tmp_path / "decoders") == first
    assert {path: path.stat().st_mtime_ns for path in first.decoder.iterdir()} == before
    assert len(registry.all()) == 1
    # Another folder gets a decoder of its own; the key stays the same.
    assert install(registry, reader, tmp_path / "others").key.id == first.key.id
    assert first.key.bits not in "".join(path.read_text("latin-1") for path in first.decoder.iterdir())


def test_what_it_marks_is_detected_and_nothing_else(registry: Registry, tmp_path: Path) -> None:
    made = install(registry, load(READER).sha256(), tmp_path)
    images = render(sample_scenes(99, range(8))).images
    backbone = backbones.load("toys")
    found = []
    for vae in (load_vae(made.decoder), backbone.vae):
        with torch.no_grad():
            pictures = vae.decode(vae.encode(images).latent_dist.mode()).sample
        verdicts = verify_many([png(picture) for picture in pictures], made.key.bits)
        found.append([verdict.verdict for verdict in verdicts if isinstance(verdict, Verdict)])
    assert [len(part) for part in found] == [8, 8]
    assert found[0].count("detected") >= 7
    assert found[1].count("detected") == 0


def test_what_stands_against_it_is_said(registry: Registry, tmp_path: Path) -> None:
    reader = load(READER).sha256()
    with pytest.raises(ModelError, match=r"made for extractor .* make mark"):
        install(registry, "0" * 64, tmp_path / "decoders")
    with pytest.raises(ArtifactError, match="no such adapter file"):
        install(registry, reader, tmp_path / "decoders", tmp_path / "none")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ADAPTER).write_bytes((FOLDER / ADAPTER).read_bytes())
    with pytest.raises(ArtifactError, match=r"bits.txt: cannot be read"):
        install(registry, reader, tmp_path / "decoders", tmp_path / "half")
    assert registry.all() == []
    assert not (tmp_path / "decoders").exists()
    made = install(registry, reader, tmp_path / "decoders")
    registry.revoke(made.key.id, "seen enough")
    with pytest.raises(ConfigError, match=r"revoked here \(seen enough\)"):
        install(registry, reader, tmp_path / "decoders")
