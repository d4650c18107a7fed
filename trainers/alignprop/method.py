"""`AlignProp`: fine-tune an adapter so that generated pictures score higher in rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.alignprop.build import build
from lrdiff.alignprop.diversity import diversity
from lrdiff.alignprop.objective import Objective, Term, to_unit
from lrdiff.alignprop.specs import parse
from lrdiff.alignprop.trajectory import Gradients, rollout
from lrdiff.artifact import Artifact, Header
from lrdiff.errors import NonFiniteError
from lrdiff.inject import inject, state, tuner_layers
from lrdiff.prompts import read_prompts
from lrdiff.rng import stream
from lrdiff.sampling import SAMPLERS, guided
from trainers.alignprop.config import AlignPropRun
from trainers.alignprop.stop import Watchdog
from trainers.data import epoch_indices
from trainers.engine import Engine
from trainers.method import Batch, Method, Metrics, ParamGroup

ADAPTER = "default"
CHUNK = 4
"""Pictures drawn together where no gradient is needed."""
PER_PROMPT = 2
"""Pictures of each held-out prompt; diversity is their difference."""


class AlignProp(Method[AlignPropRun]):
    """Loss: that of the rewards of pictures drawn from noise, plus `penalty E || out - out_base ||^2`.

    The penalty is taken on the outputs that carry gradient, against the same network with the adapter switched off. For
    a Gaussian sampling step the divergence of both steps' distributions is that difference times a factor of the
    schedule (DPOK, arXiv 2305.16381, eq. 6), which is left out here.

    Differs from the paper: see `lrdiff.alignprop.trajectory` for the modes; the loss is scaled nowhere.
    """

    def __init__(self, config: AlignPropRun, name: str, engine: Engine) -> None:
        """Load model and rewards, read the prompts, insert the adapter.

        Args:
            config: The whole run configuration.
            name: Registry name of the method, for the artifact's header.
            engine: Says device and number format.

        Raises:
            LrdiffError: A model, a reward or a list of prompts cannot be used, or no layer matches.
        """
        super().__init__(config)
        settings = config.method
        self.name, self.engine = name, engine
        self.prompts = read_prompts(config.train_prompts, "method.prompts")
        self.held_out = read_prompts(config.held_out_prompts, "method.held_out")[: settings.held_out_count]
        self.shown = list(config.watch.preview_prompts) or self.held_out[:2]
        self.objective = Objective(self._terms(), settings.bound)
        self.monitor = self._term(settings.monitor) if settings.monitor else None
        self.backbone = backbones.load(config.model, device=engine.device, dtype=engine.dtype)
        self.conditions = self._condition()
        self.backbone.release_encoders()
        if settings.recompute:
            # Block by block: computed again as a whole, the decoder would be kept as a whole.
            self.backbone.vae.enable_gradient_checkpointing()
        self.times = self.backbone.schedule.timesteps(settings.sampling_steps, "trailing")
        if settings.normalise:
            texts = [self.prompts[i % len(self.prompts)] for i in range(settings.normalise)]
            self.objective.normalise(self._draw(texts, "normalise"), texts)
        self.denoiser = self.backbone.denoiser
        if settings.recompute_blocks:
            cast(Any, self.denoiser).enable_gradient_checkpointing()
        layers = self.backbone.target_layers(settings.targets)
        self.adapter = settings.adapter_settings()
        self.peft_config = self.adapter.peft(layers)
        self.report = inject(self.denoiser, self.peft_config, ADAPTER)
        trained = [p for group in self.param_groups() for p in group.params]
        self.watchdog = Watchdog(trained, settings.min_diversity, settings.max_drop)

    def _terms(self) -> list[Term]:
        settings = self.config.method
        terms = [self._term(text) for text in settings.reward]
        for term, target in zip(terms, settings.target, strict=False):  # without a bound there are no targets
            term.target = target
        return terms

    def _term(self, text: str) -> Term:
        spec = parse(text)
        return Term(str(spec), build(spec, self.engine.device), spec.weight)

    def _condition(self) -> dict[str, dict[str, Tensor]]:
        """Encode every text the run will need, once."""
        texts = sorted({*self.prompts, *self.held_out, *self.shown, ""})
        with torch.no_grad():
            return {text: {k: v.cpu() for k, v in self.backbone.condition([text]).items()} for text in texts}

    def _conditions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found = [self.conditions[text] for text in texts]
        return {key: torch.cat([item[key] for item in found]) for key in found[0]}

    def describe(self) -> list[str]:
        """Return the preflight in words."""
        settings = self.config.method
        base = sum(p.numel() for p in self.denoiser.parameters()) - self.report.parameters
        per_step = self.config.data.batch_size * self.config.optim.accumulate * self.engine.processes
        monitor = self.monitor.name if self.monitor is not None else "no monitor"
        return [
            f"base model {self.backbone.name}: {base:,} parameters, all frozen",
            f"{self.name}: {self.report.parameters:,} parameters ({settings.adapter}) on {len(self.report.targets)} "
            f"layers, {self.report.targets[0]} ... {self.report.targets[-1]}",
            f"rewards {', '.join(settings.reward)}, bound {settings.bound}; units "
            f"{', '.join(f'{term.scale:.4g}' for term in self.objective.terms)}",
            f"gradient {settings.mode}, k = {settings.k} of {settings.sampling_steps} steps, guidance "
            f"{settings.guidance:g}; recompute {settings.recompute}, by blocks {settings.recompute_blocks}",
            f"{len(self.prompts)} prompts to train on, {len(self.held_out)} held out ({monitor}); "
            f"{per_step} pictures in every step, {per_step * self.config.optim.steps} in all",
        ]

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return prompts, their conditions, and noise [B, C, h, w] of micro-batch `index`."""
        chosen = epoch_indices(index, self.config.data.batch_size, len(self.prompts), self.config.seed)
        texts = [self.prompts[i] for i in chosen]
        noise = torch.randn((len(texts), *self.backbone.latent_shape), generator=rng)
        negative = self._conditions([""] * len(texts))
        return {"prompts": texts, "noise": noise, "cond": self._conditions(texts), "uncond": negative}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of freshly drawn pictures."""
        settings = self.config.method
        penalties: list[Tensor] = []

        def observe(x: Tensor, t: Tensor, out: Tensor) -> None:
            with torch.no_grad(), self._without_adapter():
                base = self._guided(x, t, batch)
            penalties.append((out.float() - base.float()).square().mean())

        latents = rollout(
            self.backbone.predict,
            batch["noise"],
            batch["cond"],
            batch["uncond"],
            self.backbone.schedule,
            self.times,
            settings.guidance,
            Gradients(settings.mode, settings.k, settings.repeats, settings.detach_negative, settings.recompute),
            rng,
            stop_after=self._stop_after(rng),
            observe=observe if settings.penalty else None,
        )
        images = to_unit(self.backbone.decode(latents), settings.straight_through)
        prompts = list(batch["prompts"]) * (len(images) // len(batch["prompts"]))
        with torch.autocast(images.device.type, enabled=False):
            losses, scores = self.objective(images.float(), prompts)
        loss, metrics = losses.mean(), {f"reward_{name}": value.detach().mean() for name, value in scores.items()}
        if settings.penalty:
            penalty = torch.stack(penalties).mean()
            return loss + settings.penalty * penalty, metrics | {"penalty": penalty.detach()}
        return loss, metrics

    def _stop_after(self, rng: torch.Generator) -> int | None:
        """Draw after how many steps `spaced` leaves."""
        early = self.config.method.early_stop
        return len(self.times) - int(torch.randint(0, early + 1, (), generator=rng)) if early else None

    def _guided(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return guided(self.backbone.predict, x, t, batch["cond"], batch["uncond"], self.config.method.guidance)

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        """Let the network be the untouched one for a while."""
        layers = [layer for _, layer in tuner_layers(self.denoiser, ADAPTER)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return the adapter."""
        return [ParamGroup("adapter", [p for p in self.denoiser.parameters() if p.requires_grad])]

    def artifact(self) -> Artifact:
        """Return the adapter, of the last good evaluation where the run was ended by its watchdog."""
        settings = self.config.method
        header = Header(
            method=self.name,
            adapter=self.adapter.adapter,
            config=self.peft_config.to_dict(),
            base_model=self.backbone.name,
            base_fingerprint=self.backbone.fingerprint,
            component=self.backbone.component,
            extra={
                "prompt": self.held_out[0],
                "seed": self.config.seed,
                "reward": list(settings.reward),
                "bound": settings.bound,
                "target": list(settings.target),
                "units": [term.scale for term in self.objective.terms],
            },
        )
        with self.watchdog.kept():
            found = state(self.denoiser, ADAPTER)
            tensors = {key: value.detach().float().cpu().clone() for key, value in found.items()}
        return Artifact(tensors=tensors, header=header)

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure rewards, monitor and diversity on held-out prompts at fixed seeds."""
        texts = [text for text in self.held_out for _ in range(PER_PROMPT)]
        images = self._draw(texts, "evaluate")
        terms = [*self.objective.terms, *([self.monitor] if self.monitor is not None else [])]
        found = {
            f"held_out_{term.name}": float(term.scores(images.to(self.engine.device), texts).mean()) for term in terms
        }
        found["diversity"] = diversity(images.unflatten(0, (-1, PER_PROMPT)))
        monitor = found[f"held_out_{self.monitor.name}"] if self.monitor is not None else 0.0
        self.watchdog.see(found["diversity"], monitor)
        return found

    def done(self) -> str:
        """Return why further steps would do harm, or ""."""
        return self.watchdog.reason()

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw every preview prompt at fixed seeds."""
        count = self.config.watch.preview_count
        steps = self.config.watch.preview_steps
        return {
            f"prompt{number:02d}": self._draw([text] * count, "preview", steps) * 2 - 1
            for number, text in enumerate(self.shown)
        }

    @torch.no_grad()
    def _draw(self, prompts: Sequence[str], name: str, steps: int = 0) -> Tensor:
        """Return pictures [N, 3, H, W] in [0, 1], on the CPU; picture i starts from noise of (seed, name, i)."""
        backbone, times = self.backbone, self.times
        if steps:
            times = backbone.schedule.timesteps(steps, "trailing")
        seeds = [stream(self.config.seed, name, number) for number in range(len(prompts))]
        noise = torch.stack([torch.randn(backbone.latent_shape, generator=rng) for rng in seeds])
        parts = []
        for start in range(0, len(prompts), CHUNK):
            part = prompts[start : start + CHUNK]
            cond, uncond = (self._to_device(self._conditions(texts)) for texts in (part, [""] * len(part)))
            x = noise[start : start + CHUNK].to(backbone.device)
            with self._autocast():
                sample = SAMPLERS["ddim"]
                latents = sample(
                    backbone.predict, x, cond, uncond, backbone.schedule, times, self.config.method.guidance
                )
                parts.append(to_unit(backbone.decode(latents).float()).cpu())
        images = torch.cat(parts)
        if not bool(torch.isfinite(images).all()):
            raise NonFiniteError("drawn pictures came out as NaN or infinity; use precision.dtype fp32")
        return images

    def state(self) -> dict[str, Tensor]:
        """Return what the watchdog saw, and the rewards' units."""
        units = torch.tensor([term.scale for term in self.objective.terms], dtype=torch.float64)
        return {"units": units} | self.watchdog.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for term, unit in zip(self.objective.terms, state["units"].tolist(), strict=True):
            term.scale = unit
        self.watchdog.load_state(state)

    def _to_device(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.backbone.device) for key, value in cond.items()}

    def _autocast(self) -> Any:
        dtype = self.backbone.dtype
        return torch.autocast(self.backbone.device.type, dtype=dtype, enabled=dtype != torch.float32)
