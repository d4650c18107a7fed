"""What all families have in common: a diffusers autoencoder, text encoders, one denoiser, a scheduler, one folder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Self, cast

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lrdiff.backbones.base import (
    Group,
    check_group,
    check_images,
    display_name,
    fingerprint,
    read_json,
    weight_files,
)
from lrdiff.backbones.layers import layer_groups
from lrdiff.backbones.loading import check_part, load_part, load_plain
from lrdiff.errors import ModelError, ShapeError, TargetError
from lrdiff.schedule import Schedule

log = logging.getLogger(__name__)


class LatentBackbone:
    """Base of the families. A family names its parts and says how prompts and times reach its denoiser.

    See `lrdiff.backbones.base.Backbone` for what every method may ask.
    """

    component: ClassVar[str]
    """The denoiser's name in the folder and in diffusers' pipeline."""
    networks: ClassVar[dict[str, type]]
    """Denoiser and text encoders by the name of their folder."""
    tokenizers: ClassVar[dict[str, type]]
    """Tokenizers by the name of their folder; the n-th one belongs to the n-th text encoder."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Parts that a folder may leave out."""

    def __init__(self, path: Path, parts: Mapping[str, Any], fingerprint: str, index: Mapping[str, Any]) -> None:
        """Take loaded parts; `load` reads them from a folder."""
        self.path = path
        self.name = display_name(path)
        self.fingerprint = fingerprint
        self._index = dict(index)
        self._texts = {name: part for name, part in parts.items() if name.startswith(("text_encoder", "tokenizer"))}
        self.denoiser: nn.Module = parts[self.component]
        self._config: Any = cast(Any, self.denoiser).config
        self.vae: Any = parts["vae"]
        self._vae_config: Any = self.vae.config
        self.scheduler: Any = parts["scheduler"]
        self.truncated: dict[str, str] = {}
        self.latent_factor = 2 ** (len(self._vae_config.block_out_channels) - 1)
        side = self._side()
        self.latent_shape = (int(self._vae_config.latent_channels), side, side)
        self.resolution = side * self.latent_factor
        self.schedule = self._read_schedule()
        self._groups = layer_groups(self.denoiser)
        for module in self._modules():
            module.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a folder.

        Raises:
            ModelError: A component is missing, damaged, or of a class this family does not have.
        """
        index = read_json(path / "model_index.json")
        networks = {**cls.networks, "vae": AutoencoderKL}
        given = {name for name in {**networks, **cls.tokenizers} if _is_given(index, name, cls.optional)}
        for name, kind in {**networks, **cls.tokenizers, "scheduler": None}.items():
            if name in given or name == "scheduler":
                check_part(path, index, name, kind)
        files, _ = weight_files(path / cls.component)
        config = read_json(path / cls.component / "config.json")
        cls._check_config(path, config, read_json(path / "vae" / "config.json"))
        parts = {name: load_part(kind, path / name, dtype) for name, kind in networks.items() if name in given}
        parts |= {name: load_plain(kind, path / name) for name, kind in cls.tokenizers.items() if name in given}
        parts["scheduler"] = load_plain(getattr(diffusers, index["scheduler"][1]), path / "scheduler")
        return cls(path, parts, fingerprint(config, files), index).to(device)

    @classmethod
    def _check_config(cls, path: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        """Refuse relatives whose denoiser wants inputs that this family does not give."""
        taken, given = denoiser.get("in_channels"), vae.get("latent_channels")
        if taken != given:
            raise ModelError(
                f"{path}: the denoiser takes {taken} channels, the latents have {given}; inpainting, depth and "
                "control models are not supported"
            )
        if not isinstance(denoiser.get("sample_size"), int):
            raise ModelError(
                f"{path}: {cls.component}/config.json has sample_size {denoiser.get('sample_size')!r}, "
                "expected one number"
            )

    def _side(self) -> int:
        """Return the native side in latents."""
        return int(self._config.sample_size)

    def _read_schedule(self) -> Schedule:
        return Schedule.from_config(self.scheduler.config)

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the denoiser, and of every other module unless a family says otherwise."""
        return next(self.denoiser.parameters()).dtype

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the scaled latents.

        Args:
            images: [B, 3, H, W] in [-1, 1]; H and W multiples of `latent_factor`.

        Returns:
            Two tensors [B, C, h, w], float32.

        Raises:
            ModelError: The encoder was released.
            ShapeError: The images have another shape.
        """
        if self.vae.encoder is None:
            raise ModelError(f"{self.name}: the image encoder was released; load the model again to encode")
        check_images(images, self.latent_factor)
        posterior = self.vae.encode(images.to(self.device, self._vae_dtype)).latent_dist
        scale = self._vae_config.scaling_factor
        return (posterior.mean.float() - self._shift) * scale, posterior.std.float() * scale

    def encode(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return one draw of the scaled latents, [B, C, h, w], float32. Arguments and errors as in `encode_moments`."""
        mean, std = self.encode_moments(images)
        noise = torch.randn(mean.shape, generator=rng, device=rng.device)
        return mean + std * noise.to(mean.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, float32 and unclamped: a clamp here would cut the gradient of out-of-range pixels.

        Args:
            latents: Scaled latents, [B, C, h, w].

        Returns:
            [B, 3, H, W] in about [-1, 1].

        Raises:
            ShapeError: The latents have another number of channels.
        """
        self._check_latents(latents)
        raw = latents.to(self.device).float() / self._vae_config.scaling_factor + self._shift
        return self.vae.decode(raw.to(self._vae_dtype)).sample.float()

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `predict` needs to know about the prompts, each tensor [B, ...].

        A prompt that is too long is cut as the model demands; that is logged and kept in `truncated`.

        Raises:
            ModelError: The text encoders were released.
        """
        raise NotImplementedError

    def size_condition(self, original: tuple[int, int], corner: tuple[int, int]) -> dict[str, Tensor]:
        """Return conditioning [1, ...] on how a picture was cropped; empty for families that take none.

        Args:
            original: Height and width of the picture as it came, in pixels.
            corner: Top and left of the crop in the scaled picture, in pixels.
        """
        del original, corner
        return {}

    def predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the denoiser's raw output.

        Args:
            x: Noisy scaled latents, [B, C, h, w].
            t: Times, [B] or a scalar.
            cond: From `condition`, for B prompts.

        Returns:
            [B, C, h, w] in the dtype of `x`.

        Raises:
            ShapeError: The latents have another number of channels, or `cond` another batch size.
        """
        self._check_latents(x)
        context = cond["context"]
        if len(context) != len(x):
            raise ShapeError(f"{len(x)} latents need conditioning for as many prompts, got {len(context)}")
        there = {key: value.to(self.device, self.dtype) for key, value in cond.items()}
        return self._predict(x.to(self.device, self.dtype), t.to(self.device), there).to(x.dtype)

    def _predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def target_layers(self, group: Group) -> list[str]:
        """Return layer names inside the denoiser, in model order: see `lrdiff.backbones.layers.layer_groups`.

        Raises:
            TargetError: The group is unknown, or this denoiser has nothing of its last kind.
        """
        check_group(group)
        if group not in self._groups:
            raise TargetError(f"{self.name}: its {self.component} has no convolutions to adapt; use attention+ff")
        return list(self._groups[group])

    def pipeline(self) -> Any:
        """Return a diffusers pipeline around the very same modules, without safety checker.

        Raises:
            ModelError: The encoders were released.
        """
        if not self._texts or self.vae.encoder is None:
            raise ModelError(f"{self.name}: the encoders were released; load the model again for a pipeline")
        kind = getattr(diffusers, self._index["_class_name"])
        known = inspect.signature(kind.__init__).parameters
        settings = {name: self._index[name] for name in known if not isinstance(self._index.get(name, []), list)}
        absent = dict.fromkeys(name for name in {**self.networks, **self.tokenizers} if name in self.optional)
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        parts = {self.component: self.denoiser, "vae": self.vae, "scheduler": scheduler}
        return kind(**{**settings, **absent, **self._texts, **parts, **self._without_checks()})

    def _without_checks(self) -> dict[str, Any]:
        """Return arguments of the pipeline that switch off parts which judge images."""
        return {}

    def release_encoders(self) -> None:
        """Drop text encoders, tokenizers and the encoder half of the autoencoder; `decode` still works."""
        self._texts.clear()
        self.vae.encoder = cast(Any, None)
        self.vae.quant_conv = cast(Any, None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast all modules in place; return the backbone."""
        for module in self._modules():
            nn.Module.to(module, device=device, dtype=dtype)
        return self

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @property
    def _shift(self) -> float:
        return self._vae_config.shift_factor or 0.0

    def _modules(self) -> list[nn.Module]:
        texts = [part for part in self._texts.values() if isinstance(part, nn.Module)]
        return [self.denoiser, self.vae, *texts]

    def _text_part(self, name: str) -> Any:
        """Return a text encoder or tokenizer. Raises `ModelError` when they were released."""
        if not self._texts:
            raise ModelError(f"{self.name}: the text encoder was released; load the model again to use new prompts")
        return self._texts.get(name)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.latent_shape[0]:
            raise ShapeError(f"latents must be [B, {self.latent_shape[0]}, h, w], got {list(latents.shape)}")

    def _tokens(self, tokenizer: Any, prompts: Sequence[str], limit: int) -> Any:
        """Return ids and mask of `limit` tokens for every prompt; a prompt that is cut is logged and kept."""
        tokens = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        for prompt in prompts:
            ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
            if len(ids) > limit and prompt not in self.truncated:
                lost = str(tokenizer.decode(ids[limit - 1 : -1]))
                self.truncated[prompt] = lost
                log.warning(
                    "%s reads %d tokens of a prompt; this prompt has %d and its end is ignored: %r",
                    self.name, limit - 2, len(ids) - 2, shorten(lost, 80, placeholder=" ..."),
                )  # fmt: skip
        return tokens.to(self.device)


def _is_given(index: Mapping[str, Any], name: str, optional: frozenset[str]) -> bool:
    """Tell whether a part is to be loaded: an optional one may be absent, or listed as [null, null]."""
    entry = index.get(name)
    return name not in optional or (isinstance(entry, list) and len(entry) == 2 and entry[1] is not None)
