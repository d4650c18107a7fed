"""Merging a mark into a decoder: what is on disk is what was trained, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from lrdiff import backbones
from lrdiff.adapters import Adapter, read_adapter
from lrdiff.decoders import fingerprint_of, load_vae, read_decoder
from lrdiff.errors import ArtifactError, ModelError
from lrdiff.generate_config import AdapterSpec
from lrdiff.inject import attach
from lrdiff.rng import stream
from lrdiff.watermark.publish import publish
from tests.lrdiff.marks import save_mark
from tests.tiny import build_tiny_model


def read(path: Path) -> Adapter:
    return read_adapter(AdapterSpec(path=path, weight=1.0))


def test_the_folder_decodes_as_base_and_adapter_and_only_the_marked_layers_changed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    adapter = read(save_mark(tiny_model_dir, tmp_path / "mark.safetensors"))
    made = publish(adapter, tmp_path / "decoder")
    assert made.rounding <= 1e-5 < 1e-3 < made.change
    backbone = backbones.load(tiny_model_dir)
    latents = torch.randn((2, 4, 8, 8), generator=stream(0, "z"))
    attach(backbone.vae, adapter.artifact, "mark")
    written = AutoencoderKL.from_pretrained(made.path)
    with torch.no_grad():
        expected, found = (vae.decode(latents).sample for vae in (backbone.vae, written))
    assert float((found - expected).abs().max()) <= 1e-5
    base = load_vae(tiny_model_dir / "vae").state_dict()
    fused = load_file(made.path / "diffusion_pytorch_model.safetensors")
    assert fused.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], fused[name])}
    assert changed == {f"{name}.weight" for name in made.layers}
    assert all(name.startswith("decoder.up_blocks.1.resnets.") for name in changed)


def test_the_header_names_key_extractor_and_hashes_and_no_bits(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapter = read(save_mark(tiny_model_dir, tmp_path / "mark.safetensors"))
    made = publish(adapter, tmp_path / "decoder")
    record = json.loads((made.path / "lrdiff.json").read_text())
    assert set(record) == {
        "format", "key", "extractor", "adapter", "base_model", "base_fingerprint", "fingerprint", "versions"
    }  # fmt: skip
    assert (record["key"], record["extractor"]) == ("k1", "e" * 64)
    assert record["adapter"] == adapter.sha256
    assert record["base_fingerprint"] == fingerprint_of(tiny_model_dir / "vae") != record["fingerprint"]
    assert read_decoder(made.path).header == made.header
    # The adapter does not travel along: subtracted, it would take the mark off.
    assert {file.name for file in made.path.iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "lrdiff.json"
    }  # fmt: skip


def test_the_folder_can_be_given_away(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = publish(read(save_mark(tiny_model_dir, tmp_path / "mark.safetensors")), tmp_path / "decoder")
    (tmp_path / "plain").touch()
    assert {file.stat().st_mode for file in made.path.iterdir()} == {(tmp_path / "plain").stat().st_mode}
    for file in made.path.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert str(tiny_model_dir).encode() not in file.read_bytes(), f"{file.name} says where things are here"


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoder"
    cases = {
        "leaves every picture as it was": save_mark(tiny_model_dir, tmp_path / "zero.safetensors", size=0.0),
        "not a watermark": save_mark(tiny_model_dir, tmp_path / "other.safetensors", extra={}),
        "made for the autoencoder of 'elsewhere'": save_mark(
            tiny_model_dir, tmp_path / "foreign.safetensors", base_model="elsewhere", base_fingerprint="0" * 64
        ),
    }
    for message, path in cases.items():
        with pytest.raises(ArtifactError, match=message):
            publish(read(path), out)
    good = read(save_mark(tiny_model_dir, tmp_path / "mark.safetensors"))
    other = build_tiny_model(tmp_path / "other-model", seed=1)
    with pytest.raises(ArtifactError, match="--model"):
        publish(good, out, str(other))
    with pytest.raises(ModelError, match="nowhere"):
        publish(good, out, str(tmp_path / "nowhere"))
    assert not out.exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith(".tmp")]
    out.mkdir()
    with pytest.raises(ArtifactError, match="is there already"):
        publish(good, out)


def test_a_moved_base_model_can_be_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    extra = {"key": "k1", "extractor": "e" * 64, "model": str(tmp_path / "gone"), "registered": False}
    adapter = read(save_mark(tiny_model_dir, tmp_path / "mark.safetensors", extra=extra))
    with pytest.raises(ModelError, match="gone"):
        publish(adapter, tmp_path / "decoder")
    assert publish(adapter, tmp_path / "decoder", str(tiny_model_dir)).path.is_dir()
