"""Marked decoders in a backbone: used, recorded, refused, taken out again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lrdiff import backbones
from lrdiff.adapters import read_adapter
from lrdiff.decoders import decoding, fingerprint_of, load_vae, new_folder, read_decoder, write_header
from lrdiff.errors import ArtifactError, ModelError
from lrdiff.generate import generate
from lrdiff.generate_config import AdapterSpec, GenerateConfig
from lrdiff.images import read_image, to_tensor
from lrdiff.metadata import read_parameters
from lrdiff.watermark.publish import publish
from tests.lrdiff.marks import save_mark
from tests.lrdiff.test_generate import save_adapter
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def marked(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a marked decoder's folder; read-only by agreement."""
    folder = tmp_path_factory.mktemp("marked")
    path = save_mark(tiny_model_dir, folder / "mark.safetensors")
    return publish(read_adapter(AdapterSpec(path=path, weight=1.0)), folder / "decoder").path


def settings(model: Path, out: Path, **changes: object) -> GenerateConfig:
    values = {"model": str(model), "out": out, "steps": 2, "device": "cpu", "prompt": "a red cube", **changes}
    return GenerateConfig.model_validate(values)


def test_pictures_are_decoded_by_it_and_say_so(tiny_model_dir: Path, marked: Path, tmp_path: Path) -> None:
    (plain,) = generate(settings(tiny_model_dir, tmp_path / "plain"))
    (made,) = generate(settings(tiny_model_dir, tmp_path / "made", decoder=marked))
    difference = (to_tensor(read_image(made)) - to_tensor(read_image(plain))).abs()
    assert float(difference.max()) > 0.01
    record = read_parameters(made)
    decoder = read_decoder(marked)
    assert record["decoder"] == {"fingerprint": decoder.header.fingerprint}
    assert read_parameters(plain)["decoder"] is None
    with Image.open(made) as picture:
        picture.load()
        assert f"VAE hash: {decoder.header.fingerprint[:10]}" in picture.info["parameters"]
        assert "k1" not in json.dumps(record), "the key is no public matter"
    (again,) = generate(GenerateConfig(**record["config"], out=tmp_path / "again"))
    assert again.read_bytes() == made.read_bytes()


def test_it_works_with_adapters_and_leaves_the_backbone_as_it_was(
    tiny_model_dir: Path, marked: Path, tmp_path: Path
) -> None:
    backbone = backbones.load(tiny_model_dir)
    adapter = save_adapter(backbone, tmp_path / "red-cat.safetensors")
    own = backbone.vae
    paths = {}
    for name, change in {
        "plain": {},
        "adapter": {"adapter": str(adapter)},
        "decoder": {"decoder": marked},
        "both": {"adapter": str(adapter), "decoder": marked},
    }.items():
        (paths[name],) = generate(settings(tiny_model_dir, tmp_path / name, **change), backbone=backbone)
        assert backbone.vae is own
    pictures = [path.read_bytes() for path in paths.values()]
    assert len(set(pictures)) == 4
    record = read_parameters(paths["both"])
    assert record["adapters"][0]["name"] == "red-cat"
    assert record["decoder"] is not None


def test_a_decoder_of_another_model_is_refused(marked: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match=r"the autoencoder of 'tiny' \(.*\), but the model in use is 'other'"):
        generate(settings(other, tmp_path / "out", decoder=marked))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_decoder_without_a_mark_is_refused(tiny_model_dir: Path, marked: Path, tmp_path: Path) -> None:
    """A base decoder under a marked one's name: every picture would silently be unmarked."""
    vae = tiny_model_dir / "vae"
    shutil.copytree(vae, tmp_path / "same")
    header = dataclasses.replace(read_decoder(marked).header, fingerprint=fingerprint_of(vae))
    write_header(tmp_path / "same", header)
    backbone = backbones.load(tiny_model_dir)
    own = backbone.vae
    with pytest.raises(ArtifactError, match="carries no mark"), decoding(backbone, read_decoder(tmp_path / "same")):
        pass
    assert backbone.vae is own


def test_a_decoder_of_another_shape_is_refused(tiny_model_dir: Path, marked: Path, tmp_path: Path) -> None:
    vae = load_vae(marked)
    smaller = type(vae).from_config({**vae.config, "block_out_channels": (8, 8)})
    smaller.save_pretrained(tmp_path / "smaller")
    header = dataclasses.replace(read_decoder(marked).header, fingerprint=fingerprint_of(tmp_path / "smaller"))
    write_header(tmp_path / "smaller", header)
    backbone = backbones.load(tiny_model_dir)
    with pytest.raises(ArtifactError, match="another shape"), decoding(backbone, read_decoder(tmp_path / "smaller")):
        pass


def test_folders_that_are_none_or_were_changed_are_refused(marked: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no folder"):
        read_decoder(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"has no lrdiff\.json"):
        read_decoder(tmp_path)
    for name, content, error, word in (
        ("lrdiff.json", b"{", ModelError, "cannot be read"),
        ("lrdiff.json", b'{"format": 1}', ArtifactError, "is damaged"),
        ("lrdiff.json", b'{"format": 9}', ArtifactError, "update lrdiff"),
        ("diffusion_pytorch_model.safetensors", b"broken", ModelError, "safetensors"),
    ):
        folder = tmp_path / f"{word[:4]}"
        shutil.copytree(marked, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(error, match=word):
            read_decoder(folder)
    shutil.copytree(marked, tmp_path / "changed")
    file = tmp_path / "changed" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed"):
        read_decoder(tmp_path / "changed")


def test_a_new_folder_is_there_completely_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "a"):
        _fail_if_different(torch.zeros(1), torch.ones(1))
    with new_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "b").exists()
    assert (tmp_path / "b" / "file").read_text() == "x"
    (tmp_path / "c").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot be written"), new_folder(tmp_path / "c" / "d"):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "c"]


def test_the_backbone_decodes_as_before_when_something_fails_inside(tiny_model_dir: Path, marked: Path) -> None:
    backbone = backbones.load(tiny_model_dir)
    latents = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = backbone.decode(latents)
        with pytest.raises(KeyError, match="marked"), decoding(backbone, read_decoder(marked)):
            _fail_if_different(backbone.decode(latents), before)
        assert torch.equal(backbone.decode(latents), before)


def _fail_if_different(a: torch.Tensor, b: torch.Tensor) -> None:
    if not torch.equal(a, b):
        raise KeyError("marked")
