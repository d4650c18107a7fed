"""Rewards by CLIP models, on tiny random weights in the real layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from lrdiff.alignprop.build import build
from lrdiff.alignprop.clip import Clip, read_head
from lrdiff.alignprop.specs import parse
from lrdiff.errors import ModelError
from lrdiff.rng import stream
from tests.lrdiff.alignprop.clip_folder import build_tiny_clip
from tests.tiny import LENGTH, build_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["a red cube", "a blue ball on sand"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def predictor() -> nn.Sequential:
    """Return a small stack as LAION's: linear layers with dropout between."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(12, 8), nn.Dropout(0.2), nn.Linear(8, 6), nn.Dropout(0.2), nn.Linear(6, 4), nn.Dropout(0.1),
        nn.Linear(4, 3), nn.Linear(3, 1),
    ).eval()  # fmt: skip


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 24, 40, generator=stream(0, "p")).requires_grad_()


@pytest.mark.parametrize("name", ["clip", "hps", "pickscore"])
def test_scores_are_the_models_own(folder: Path, name: str) -> None:
    images = pictures()
    scores = build(parse(f"{name}={folder}"), CPU)(images, PROMPTS)
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = build_tokenizer()(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    sized = F.interpolate(images, (16, 16), mode="bicubic", antialias=True, align_corners=False)
    with torch.no_grad():
        found = model(**tokens, pixel_values=(sized - mean) / std)
    expected = found.logits_per_image.diagonal()
    expected = expected if name == "pickscore" else expected / model.logit_scale.exp()
    assert torch.allclose(scores, expected, atol=1e-5)
    scores.sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum((1, 2, 3)).min()) > 0


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_the_aesthetic_predictor_is_its_layers(
    folder: Path, predictor: nn.Sequential, tmp_path: Path, form: str
) -> None:
    state = {f"layers.{name}": value for name, value in predictor.state_dict().items()}
    file = tmp_path / f"head.{form}"
    torch.save(state, file) if form == "pth" else save_file(state, file)
    images = pictures()
    scores = build(parse(f"aesthetic={folder},{file}"), CPU)(images, PROMPTS)
    expected = predictor(Clip(str(folder), CPU).images(images))[:, 0]
    assert torch.allclose(scores, expected, atol=1e-5)
    scores.sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum((1, 2, 3)).min()) > 0


def test_an_unfit_predictor_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"layers.0.weight": torch.ones(1, 5), "layers.0.bias": torch.ones(1)}, tmp_path / "small.safetensors")
    with pytest.raises(ModelError, match="embeddings of 5 numbers, this CLIP model gives 12"):
        build(parse(f"aesthetic={folder},{tmp_path / 'small.safetensors'}"), CPU)
    save_file({"layers.0.weight": torch.ones(2, 5), "layers.0.bias": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match="gives 2 numbers per picture"):
        read_head(tmp_path / "two.safetensors")
    (tmp_path / "bad.pth").write_text("no weights")
    for file in (tmp_path / "bad.pth", tmp_path / "absent.safetensors"):
        with pytest.raises(ModelError, match="cannot be read as an aesthetic predictor"):
            read_head(file)


def test_a_folder_without_a_clip_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP model"):
        Clip(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "visual_projection" not in k}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="weights of 1 tensors of a CLIP model are absent"):
        Clip(str(tmp_path), CPU)
