"""Stable Diffusion 1.x and 2.x: AutoencoderKL, CLIPTextModel, UNet2DConditionModel in diffusers' layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as hf_logging

from lrdiff.backbones.base import (
    Group,
    check_group,
    check_images,
    display_name,
    fingerprint,
    read_json,
    weight_files,
)
from lrdiff.errors import ModelError, ShapeError
from lrdiff.schedule import Schedule

log = logging.getLogger(__name__)

# what the libraries raise over the content of a folder
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)
PARTS: dict[str, type] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


class UNetBackbone:
    """A Stable Diffusion model of the first two generations. See `lrdiff.backbones.base.Backbone`."""

    def __init__(
        self,
        path: Path,
        *,
        denoiser: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Any,
        fingerprint: str,
    ) -> None:
        self.path = path
        self.name = display_name(path)
        self.fingerprint = fingerprint
        self.denoiser = denoiser
        self.component = "unet"
        self.vae = vae
        self._vae_config: Any = vae.config
        self.text_encoder: CLIPTextModel | None = text_encoder
        self.tokenizer: CLIPTokenizer | None = tokenizer
        self.scheduler = scheduler
        self.schedule = Schedule.from_config(scheduler.config)
        self.truncated: dict[str, str] = {}
        self.latent_factor = 2 ** (len(self._vae_config.block_out_channels) - 1)
        side = int(cast(Any, denoiser.config).sample_size)
        self.latent_shape = (int(self._vae_config.latent_channels), side, side)
        self.resolution = side * self.latent_factor
        self._groups = _layer_groups(denoiser)
        for module in (denoiser, vae, text_encoder):
            module.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype) -> UNetBackbone:
        """Load a folder.

        Raises:
            ModelError: A component is missing, damaged, or of a class this family does not have.
        """
        index = read_json(path / "model_index.json")
        for name, kind in {**PARTS, "tokenizer": CLIPTokenizer, "scheduler": None}.items():
            _check_part(path, index, name, kind)
        files, _ = weight_files(path / "unet")
        config = read_json(path / "unet" / "config.json")
        parts = {name: _load_part(kind, path / name, dtype) for name, kind in PARTS.items()}
        _check_fit(path, parts["unet"], parts["vae"])
        backbone = cls(
            path,
            denoiser=parts["unet"],
            vae=parts["vae"],
            text_encoder=parts["text_encoder"],
            tokenizer=_load_plain(CLIPTokenizer, path / "tokenizer"),
            scheduler=_load_plain(getattr(diffusers, index["scheduler"][1]), path / "scheduler"),
            fingerprint=fingerprint(config, files),
        )
        return backbone.to(device)

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all modules."""
        return next(self.vae.parameters()).dtype

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
        posterior = cast(Any, self.vae.encode(images.to(self.device, self.dtype))).latent_dist
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
        return cast(Any, self.vae.decode(raw.to(self.dtype))).sample.float()

    def condition(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return {"context": [B, L, D]}, the text encoder's last hidden states.

        A prompt that is too long is cut as the model demands; that is logged and kept in `truncated`.

        Raises:
            ModelError: The text encoder was released.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ModelError(f"{self.name}: the text encoder was released; load the model again to use new prompts")
        limit = min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        self._note_truncation(prompts, limit)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens["attention_mask"].to(self.device)
        hidden = self.text_encoder(tokens["input_ids"].to(self.device), attention_mask=mask).last_hidden_state
        return {"context": hidden}

    def predict(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the UNet's raw output.

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
        context = context.to(self.device, self.dtype)
        out = self.denoiser(x.to(self.device, self.dtype), t.to(self.device), encoder_hidden_states=context).sample
        return out.to(x.dtype)

    def target_layers(self, group: Group) -> list[str]:
        """Return layer names inside the UNet, in model order.

        "attention": to_q, to_k, to_v, to_out.0 of every self- and cross-attention. "+ff": the two linear layers of
        every feed-forward. "+conv": the convolutions of residual blocks, of down- and of upsampling.

        Raises:
            TargetError: The group is unknown.
        """
        check_group(group)
        return list(self._groups[group])

    def pipeline(self) -> Any:
        """Return a diffusers `StableDiffusionPipeline` around the very same modules, without safety checker.

        Raises:
            ModelError: The encoders were released.
        """
        if self.text_encoder is None or self.tokenizer is None or self.vae.encoder is None:
            raise ModelError(f"{self.name}: the encoders were released; load the model again for a pipeline")
        from diffusers import StableDiffusionPipeline  # slow to import, and needed by few

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=cast(Any, self.denoiser),
            scheduler=type(self.scheduler).from_config(self.scheduler.config),
            safety_checker=cast(Any, None),
            feature_extractor=cast(Any, None),
            requires_safety_checker=False,
        )

    def release_encoders(self) -> None:
        """Drop the text encoder, the tokenizer and the encoder half of the autoencoder; `decode` still works."""
        self.text_encoder = None
        self.tokenizer = None
        self.vae.encoder = cast(Any, None)
        self.vae.quant_conv = cast(Any, None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> UNetBackbone:
        """Move and cast all modules in place; return the backbone."""
        for module in (self.denoiser, self.vae, self.text_encoder):
            if module is not None:
                nn.Module.to(module, device=device, dtype=dtype)
        return self

    @property
    def _shift(self) -> float:
        return self._vae_config.shift_factor or 0.0

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.latent_shape[0]:
            raise ShapeError(f"latents must be [B, {self.latent_shape[0]}, h, w], got {list(latents.shape)}")

    def _note_truncation(self, prompts: Sequence[str], limit: int) -> None:
        """Log, once each, the prompts whose end does not reach the text encoder, and keep what was cut."""
        assert self.tokenizer is not None
        for prompt in prompts:
            ids = self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
            if len(ids) > limit and prompt not in self.truncated:
                lost = str(self.tokenizer.decode(ids[limit - 1 : -1]))
                self.truncated[prompt] = lost
                log.warning(
                    "%s reads %d tokens of a prompt; this prompt has %d and its end is ignored: %r",
                    self.name, limit - 2, len(ids) - 2, lost,
                )  # fmt: skip


def _layer_groups(unet: nn.Module) -> dict[str, tuple[str, ...]]:
    """Collect the names of every group once, before any adapter changes the modules."""
    attention: set[str] = set()
    ff: set[str] = set()
    conv: set[str] = set()
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            attention.update(f"{name}.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0"))
        elif isinstance(module, FeedForward):
            ff.update(f"{name}.{leaf}" for leaf, part in module.named_modules() if isinstance(part, nn.Linear))
        elif isinstance(module, ResnetBlock2D | Downsample2D | Upsample2D):
            conv.update(f"{name}.{leaf}" for leaf, part in module.named_modules() if isinstance(part, nn.Conv2d))
    order = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    wanted = {"attention": attention, "attention+ff": attention | ff, "attention+ff+conv": attention | ff | conv}
    return {group: tuple(name for name in order if name in names) for group, names in wanted.items()}


def _check_part(path: Path, index: Mapping[str, Any], name: str, kind: type | None) -> None:
    """Check that a component is listed in model_index.json, has the class we know, and has its folder."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
        raise ModelError(f"{path}: model_index.json lists no {name}; the model is incomplete")
    if name == "scheduler" and not hasattr(diffusers, str(entry[1])):
        raise ModelError(f"{path}: scheduler class {entry[1]!r} is unknown to diffusers {diffusers.__version__}")
    if kind is not None and str(entry[1]).removesuffix("Fast") != kind.__name__:
        raise ModelError(f"{path}: its {name} is a {entry[1]}, this family needs a {kind.__name__}")
    if not (path / name).is_dir():
        raise ModelError(f"{path}: the folder {name}/ is missing; copy the model again")


def _check_fit(path: Path, unet: Any, vae: Any) -> None:
    """Refuse relatives of Stable Diffusion whose UNet wants inputs that this family does not give."""
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelError(
            f"{path}: the UNet takes {unet.config.in_channels} channels, the latents have "
            f"{vae.config.latent_channels}; inpainting and depth models are not supported"
        )
    if unet.config.out_channels != vae.config.latent_channels:
        raise ModelError(
            f"{path}: the UNet predicts {unet.config.out_channels} channels; learned variance is not supported"
        )
    # "text" pools the caption that the UNet gets anyway; other kinds of addition want inputs of their own.
    free = {"addition_embed_type": "text"}
    for key in ("class_embed_type", "addition_embed_type", "time_cond_proj_dim", "num_class_embeds"):
        if unet.config.get(key) not in (None, free.get(key)):
            raise ModelError(f"{path}: the UNet wants extra conditioning ({key}), which this family does not give")
    if not isinstance(unet.config.sample_size, int):
        raise ModelError(f"{path}: unet/config.json has sample_size {unet.config.sample_size!r}, expected one number")


def _load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one network and refuse it when a weight is absent, since diffusers would fill in random numbers."""
    _, variant = weight_files(folder)
    try:
        with _no_progress_bar():
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                dtype=dtype,
            )
    except UNREADABLE as error:
        raise ModelError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    absent = sorted(report["missing_keys"])
    if absent or report["mismatched_keys"]:
        raise ModelError(f"{folder}: incomplete weights, {len(absent)} tensors absent, for example {absent[:1]}")
    return model


def _load_plain(kind: Any, folder: Path) -> Any:
    """Load a component without weights."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise ModelError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep the libraries from drawing a bar for every load; a library has no business on the terminal."""
    shown = [module for module in (hf_logging, diffusers_logging) if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()
