"""`Sla`: fine-tune a model with sparse-linear attention, by default towards itself with full attention."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lrdiff.artifact import Artifact, Header
from lrdiff.errors import ConfigError
from lrdiff.inject import inject, tuner_layers
from lrdiff.sla import saved
from lrdiff.sla.blocks import SIZES
from lrdiff.sla.models import full_attention, processors, put_in, set_settings
from lrdiff.sla.settings import SlaSettings as Attention
from trainers.config import RunConfig
from trainers.denoise.method import ADAPTER, Denoise
from trainers.engine import Engine
from trainers.method import Batch, Metrics, ParamGroup
from trainers.sla.config import SlaSettings

log = logging.getLogger(__name__)

FEW = 32
"""Blocks of keys in the longest sequence; with fewer the user is told."""


class Sla(Denoise):
    """Loss "velocity": `E || network(x_t, t, caption) - teacher(x_t, t, caption) ||^2`; "denoise": that of `Denoise`.

    The teacher is the untouched model with full attention: the same modules with sparse-linear attention and LoRA
    switched off, or, where all weights are trained, a frozen copy.

    Evaluation and previews are at the final sparsity, whatever the ramp has reached.
    """

    def __init__(self, config: RunConfig[Any], name: str, engine: Engine) -> None:
        """Load the base model, read and encode the images, replace the attention. Arguments as `Denoise`."""
        self._per_step = config.optim.accumulate * engine.processes
        super().__init__(config, name, engine)

    @property
    def settings(self) -> SlaSettings:
        """The method's own settings."""
        return cast(SlaSettings, self.config.method)

    def _insert(self) -> None:
        settings = self.settings
        self.denoiser = self.backbone.denoiser
        own = settings.model_dump(include={"topk", "skip", "block_q", "block_k", "scope", "feature_map", "mix"})
        self.attention = Attention(**own)
        self.peft_config: Any = None
        self.base = sum(p.numel() for p in self.denoiser.parameters())
        # In a list, so that a frozen copy is no part of this module.
        self.copies: list[nn.Module] = []
        if settings.train == "lora":
            self.peft_config = settings.peft(self.backbone.target_layers(settings.targets))
            self.report = inject(self.denoiser, self.peft_config, ADAPTER)
        if settings.train == "all":
            if settings.loss == "velocity":
                self.copies.append(copy.deepcopy(self.denoiser))
            # Masters in single precision; autocast computes in the run's number format.
            self.denoiser.float().requires_grad_(True)
        self.layers = put_in(self.denoiser, self.attention)
        if settings.checkpointing:
            cast(Any, self.denoiser).enable_gradient_checkpointing()
        if settings.compile != "off":
            self.denoiser.compile(backend=settings.compile)

    def describe(self) -> list[str]:
        """Return the preflight in words, after the first forward passes.

        Raises:
            ConfigError: The sequences are so short that every block is critical.
        """
        settings = self.settings
        tokens = sorted({processor.tokens for _, processor in processors(self.denoiser)})
        found = [self.attention.sparsity(count) for count in tokens]
        if settings.topk < 1.0 and not any(found):
            raise ConfigError(
                f"nothing would be sparse: {', '.join(map(str, tokens))} tokens are single blocks of method.block_k="
                f"{settings.block_k}, or so few that one block is all of method.topk={settings.topk:g}; choose smaller "
                "blocks, or a model of more tokens"
            )
        count = -(-max(tokens) // settings.block_k)
        if settings.topk < 1.0 and count < FEW and settings.block_k > min(SIZES):
            log.warning(
                "%s tokens are %d blocks of method.block_k=%d: a choice among so few is coarse, and pictures may show "
                "the blocks; smaller method.block_q and method.block_k lose less",
                f"{max(tokens):,}", count, settings.block_k,
            )  # fmt: skip
        lines = super()._describe_pictures()
        trained = sum(p.numel() for group in self.param_groups() for p in group.params)
        blocks = f"blocks of {settings.block_q} queries and {settings.block_k} keys"
        if settings.ramp:
            lines.append(f"the share of critical blocks falls over {settings.ramp} steps from {settings.ramp_from:g}")
        return [
            f"base model {self.backbone.name}: {self.base:,} parameters",
            f"{self.name}: {trained:,} parameters learn ({settings.train}), by the {settings.loss} loss",
            f"sparse-linear attention in {len(self.layers)} layers, {self.layers[0]} ... {self.layers[-1]}: "
            f"{blocks}, scope {settings.scope}; "
            + ", ".join(f"{count:,} tokens {share:.0%} sparse" for count, share in zip(tokens, found, strict=True)),
            *lines,
        ]

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return micro-batch `index` as `Denoise` does, with the share of critical blocks at its step."""
        return {**super().batch(index, rng), "topk": self.settings.topk_at(index // self._per_step)}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss at the sparsity of the batch's step."""
        # Left so, since a backward pass that computes activations again must see the same.
        set_settings(self.denoiser, replace(self.attention, topk=batch["topk"]))
        loss, metrics = super().forward(batch, rng)
        return loss, {**metrics, "topk": torch.tensor(batch["topk"], device=loss.device)}

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure the loss as `Denoise` does, at the final sparsity."""
        set_settings(self.denoiser, self.attention)
        return super().evaluate(rng)

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw every preview prompt at the final sparsity."""
        set_settings(self.denoiser, self.attention)
        return super().preview(rng)

    def _losses(self, clean: Tensor, noise: Tensor, times: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        if self.settings.loss == "denoise":
            return super()._losses(clean, noise, times, cond)
        x, there = self.backbone.schedule.add_noise(clean, noise, times), times.to(clean.device)
        with torch.no_grad(), self._teaching():
            target = self.backbone.predict(x, there, cond).float()
        out = self.backbone.predict(x, there, cond).float()
        return (out - target).square().flatten(1).mean(1)

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Let the backbone be the teacher for a while."""
        if self.copies:
            self.backbone.denoiser = self.copies[0].to(self.backbone.device)
            try:
                yield
            finally:
                self.backbone.denoiser = self.denoiser
            return
        layers = [layer for _, layer in tuner_layers(self.denoiser, ADAPTER)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            with full_attention(self.denoiser):
                yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return projections, shares, and what else is trained."""
        projections = [p for _, processor in processors(self.denoiser) for p in processor.proj.parameters()]
        shares = [processor.mix for _, processor in processors(self.denoiser) if processor.mix is not None]
        ours = {id(p) for p in (*projections, *shares)}
        others = [p for p in self.denoiser.parameters() if p.requires_grad and id(p) not in ours]
        pace = self.settings.projection_lr if others else 1.0
        return [
            ParamGroup("projections", projections, lr_scale=pace),
            ParamGroup("shares", shares, decay=False),
            ParamGroup("weights", others),
        ]

    def artifact(self) -> Artifact:
        """Return projections, LoRA or weights, with everything needed to use them."""
        lora = ADAPTER if self.peft_config is not None else None
        with self._averaged():
            own = dict(self.denoiser.named_parameters()) if self.settings.train == "all" else {}
            weights = {name: value for name, value in own.items() if ".processor." not in name}
            tensors = saved.tensors(self.denoiser, lora, weights)
        header = Header(
            method=self.name,
            adapter=saved.ADAPTER,
            config=saved.config(self.attention, self.layers, self.peft_config),
            base_model=self.backbone.name,
            base_fingerprint=self.backbone.fingerprint,
            component=self.backbone.component,
            extra={"prompt": self.samples[0].caption, "seed": self.config.seed, "images": len(self.samples)},
        )
        return Artifact(tensors=tensors, header=header)
