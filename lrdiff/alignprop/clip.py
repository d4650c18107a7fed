"""Rewards by CLIP models whose weights the user brings, in transformers' layout.

With unit embeddings v of the image and u of the prompt:

    clip       <v, u>                   also HPSv2 and 2.1, which are CLIP ViT-H/14 trained on people's choices
    pickscore  exp(logit_scale) <v, u>  (arXiv 2305.01569)
    aesthetic  w . v + b                LAION's predictor: a stack of linear layers on ViT-L/14 without activations

None of these weights come with the project; look at their licences. PickScore's repository is MIT, its weights' page
names no licence.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from lrdiff.errors import ModelError
from lrdiff.loading import alone

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """A frozen CLIP model with a differentiable way from pictures to embeddings."""

    @alone()
    def __init__(self, name: str, device: torch.device) -> None:
        """Load a folder, or a model of the hub by its id.

        Raises:
            ModelError: It is not there, incomplete, or no CLIP model.
        """
        try:
            model, info = cast(Any, CLIPModel.from_pretrained(name, output_loading_info=True))
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{name}: cannot be loaded as a CLIP model ({str(error).splitlines()[0]}); give a folder with "
                "config.json, weights and tokenizer in transformers' layout"
            ) from error
        # transformers fills what is absent with random numbers.
        if info["missing_keys"]:
            raise ModelError(f"{name}: weights of {len(info['missing_keys'])} tensors of a CLIP model are absent")
        self.model: Any = model.requires_grad_(False).eval().to(device)
        self.side = int(self.model.config.vision_config.image_size)
        self.mean, self.std = _statistics(Path(name))
        self._texts: dict[str, Tensor] = {}

    def images(self, images: Tensor) -> Tensor:
        """Return unit embeddings [B, D] of images [B, 3, H, W] in [0, 1].

        They are scaled to the model's square, whatever their shape, since cutting off their sides would leave those
        without gradient.
        """
        sized = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        pixels = (sized - sized.new_tensor(self.mean)[:, None, None]) / sized.new_tensor(self.std)[:, None, None]
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit embeddings [B, D] of prompts; each is computed once."""
        for prompt in set(prompts) - self._texts.keys():
            tokens = self.tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt",
                                    max_length=self.model.config.text_config.max_position_embeddings)  # fmt: skip
            found = self.model.get_text_features(**tokens.to(self.model.device)).pooler_output
            self._texts[prompt] = F.normalize(found, dim=-1)[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])


class ClipScore:
    """Reward: the cosine of image and prompt, times a factor."""

    def __init__(self, clip: Clip, *, scaled: bool = False) -> None:
        """Take the model; with `scaled` its learned temperature is the factor."""
        self.clip = clip
        self.factor = float(clip.model.logit_scale.exp()) if scaled else 1.0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return [B] scores."""
        return self.factor * (self.clip.images(images) * self.clip.texts(prompts)).sum(-1)


class Aesthetic:
    """Reward: LAION's aesthetic predictor v2, about 1 to 10."""

    def __init__(self, clip: Clip, head: Path) -> None:
        """Take CLIP ViT-L/14 and the predictor's file, .safetensors or a state dict as it is published."""
        self.clip = clip
        self.weight, self.bias = (part.to(clip.model.device) for part in read_head(head))
        width = int(clip.model.config.projection_dim)
        if len(self.weight) != width:
            raise ModelError(f"{head}: is for embeddings of {len(self.weight)} numbers, this CLIP model gives {width}")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return [B] scores."""
        return self.clip.images(images) @ self.weight + self.bias


def read_head(path: Path) -> tuple[Tensor, Tensor]:
    """Return weight [D] and bias [] of a stack of linear layers "layers.N.weight", multiplied out.

    Raises:
        ModelError: The file cannot be read, or holds something else.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        numbers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".weight"))
        weight, bias = torch.eye(tensors[f"layers.{numbers[0]}.weight"].shape[1]), torch.zeros(1)
        for number in numbers:
            layer = tensors[f"layers.{number}.weight"].float()
            weight, bias = (
                layer @ weight,
                layer @ bias.expand(layer.shape[1]) + tensors[f"layers.{number}.bias"].float(),
            )
    except (OSError, KeyError, IndexError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: cannot be read as an aesthetic predictor ({error})") from error
    if weight.shape[0] != 1:
        raise ModelError(f"{path}: gives {weight.shape[0]} numbers per picture; an aesthetic predictor gives one")
    return weight[0], bias[0]


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the colours, from the folder's preprocessor or OpenAI's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, STD
    record = json.loads(path.read_text())
    return tuple(record.get("image_mean", MEAN)), tuple(record.get("image_std", STD))
