"""`Watermark`: tune a LoRA on a decoder until a frozen extractor reads a key from every picture it makes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.artifact import Artifact, Header
from lrdiff.decoders import fingerprint_of
from lrdiff.errors import ConfigError, RunError
from lrdiff.inject import inject, state
from lrdiff.prompts import read_prompts
from lrdiff.watermark.decoder import default_lora_config
from lrdiff.watermark.distortions import Distortions
from lrdiff.watermark.dlws import LossWeights, Rules
from lrdiff.watermark.extractor import load
from lrdiff.watermark.losses import bit_accuracy, bit_loss, image_loss, psnr
from lrdiff.watermark.reading import MIN_SIDE
from trainers import inputs
from trainers.data import epoch_indices, find_samples, load_pixels
from trainers.engine import Engine
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.watermark import key
from trainers.watermark.config import WatermarkRun
from trainers.watermark.latents import generated, world_prompts

ADAPTER = "default"
CHUNK = 4
"""Pictures decoded at once where no gradient is needed."""
EXAGGERATED = 10.0
"""Factor on the difference that previews show."""
SLACK = 1.0
"""How far below its goal the PSNR may fall, in dB, before the mark gives way."""
MISSED = "pictures of this decoder may not be detected; train longer, or give method.target more layers"

log = logging.getLogger(__name__)


class Watermark(Method[WatermarkRun]):
    """Loss: `lambda_image image_loss(marked, clean) + lambda_mark BCE(gain extractor(distorted marked), key)`.

    Both pictures are decoded from the same latents, with and without the LoRA. Only the LoRA learns.

    Differs from the paper: the pictures are mostly generated ones, not encoded photos; they lose their margin and are
    distorted on their way to the extractor; the loss weights follow the repaired rules of `lrdiff.watermark.dlws`.
    """

    def __init__(self, config: WatermarkRun, name: str, engine: Engine) -> None:
        """Load base model and extractor, generate or find the latents, insert the LoRA.

        Args:
            config: The whole run configuration.
            name: Registry name of the method, for the artifact's header.
            engine: Says device and number format.

        Raises:
            LrdiffError: Model, extractor, key or a picture cannot be used, or no layer of the decoder matches.
        """
        super().__init__(config)
        settings = config.method
        self.name, self.engine = name, engine
        self.extractor = load(settings.extractor_path).to(engine.device)
        self.key = key.find(settings, self.extractor)
        self.register_buffer("bits", torch.tensor([float(bit) for bit in self.key.bits]), persistent=False)
        self.compare = image_loss(settings.image_loss, settings.lpips)
        self.distortions = Distortions() if settings.distort else None
        self.backbone = backbones.load(config.model, device=engine.device, dtype=engine.dtype)
        self.vae = self.backbone.vae
        if self.backbone.resolution - 2 * settings.margin < MIN_SIDE:
            raise ConfigError(
                f"method.margin: {settings.margin} px at each border leave less than {MIN_SIDE} of "
                f"{self.backbone.resolution} px to read from; give a smaller margin"
            )
        self.base = fingerprint_of(self.backbone.path / "vae")
        self._prepare_latents()
        self.backbone.release_encoders()
        self.backbone.denoiser.to("cpu")  # generating is over, and the decoder needs the room
        self.peft_config = default_lora_config(self.vae, settings.target, settings.r, settings.alpha)
        self.report = inject(self.vae, self.peft_config, ADAPTER)
        self.weights = LossWeights(self._rules()) if settings.weighting != "fixed" else None
        self.measured: tuple[Tensor, Tensor] | None = None
        self.met = 0
        self.missed: list[str] = []

    def _rules(self) -> Rules:
        settings = self.config.method
        if settings.weighting == "dlws-paper":
            return Rules(form="paper")
        return Rules(
            psnr_floor=settings.target_psnr - SLACK,
            psnr_cap=settings.target_psnr,
            accuracy_cap=settings.target_distorted,
        )

    def _prepare_latents(self) -> None:
        """Gather what is decoded: to learn from, to measure on, and for previews; the clean pictures of each."""
        config, settings = self.config, self.config.method
        model = inputs.model_files(self.backbone.path)
        given = read_prompts(settings.prompts, "method.prompts") if settings.prompts else None

        def make(name: str, count: int, prompts: list[str] | None, steps: int) -> Tensor:
            texts = prompts or world_prompts(count, config.seed, name)
            texts = [texts[i % len(texts)] for i in range(count)]
            options: dict[str, Any] = {"seed": config.seed, "steps": steps, "guidance": settings.guidance}
            return generated(self.backbone, model, texts, name=name, **options)

        steps, watch = settings.sampling_steps, config.watch
        self.latents = make("generated", settings.generated, given, steps)
        if config.has_images:
            self.latents = torch.cat([self.latents, self._encode("images")])
        self.held_out = make("held out", settings.held_out, given, steps)
        self.photos = self._encode("validation") if config.data.validation is not None else self.latents[:0]
        shown = [text for text in watch.preview_prompts for _ in range(watch.preview_count)]
        count = len(shown) or watch.preview_count
        self.shown = make("preview", count, shown or None, watch.preview_steps)
        # Half precision moves the training target by less than 70 dB and halves the memory.
        self.clean = self._decode(self.latents).half()
        self.clean_held_out, self.clean_photos = self._decode(self.held_out), self._decode(self.photos)
        self.clean_shown = self._decode(self.shown)

    @torch.no_grad()
    def _encode(self, which: str) -> Tensor:
        """Return the posteriors' means of a folder of photos, [N, C, h, w]."""
        data = self.config.data
        samples = find_samples(getattr(data, which), data.prompt, f"data.{which}")
        pixels = load_pixels(samples, self.backbone.resolution)
        if data.flip and which == "images":
            pixels = torch.cat([pixels, pixels.flip(-1)])
        place = {"device": self.backbone.device, "dtype": self.backbone.dtype}
        return torch.cat([self.backbone.encode_moments(part.to(**place))[0].cpu() for part in pixels.split(CHUNK)])

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        """Return pictures [N, 3, H, W] on the CPU, with whatever is in the decoder now."""
        if not len(latents):
            factor, (height, width) = self.backbone.latent_factor, latents.shape[-2:]
            return torch.empty(0, 3, height * factor, width * factor)
        with self._autocast():
            return torch.cat([self.backbone.decode(part).float().cpu() for part in latents.split(CHUNK)])

    def describe(self) -> list[str]:
        """Return the preflight in words: what is trained, where, for which key, on what."""
        settings = self.config.method
        photos = len(self.latents) - settings.generated
        known = f"key {self.key.id}" if self.key.id else "a key that will be drawn and registered"
        return [
            f"decoder of {self.backbone.name} ({self.base[:12]}): all frozen",
            f"{self.name}: {self.report.parameters:,} parameters on {len(self.report.targets)} layers, "
            f"{self.report.targets[0]} ... {self.report.targets[-1]}",
            f"{known}, {self.extractor.bits} bits, read by extractor {self.extractor.sha256()[:12]}",
            f"learns on {settings.generated} generated pictures and {photos} encoded photos at "
            f"{self.backbone.resolution} px, measured on {settings.held_out} other generated ones",
        ]

    def train(self, mode: bool = True) -> Watermark:
        """Set the mode of the method; the extractor's statistics and the decoder stay as they are."""
        super().train(mode)
        self.extractor.eval()
        self.vae.eval()
        return self

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return latents and clean pictures of micro-batch `index`; every epoch is a new permutation."""
        chosen = epoch_indices(index, self.config.data.batch_size, len(self.latents), self.config.seed)
        return {"latents": self.latents[chosen], "clean": self.clean[chosen]}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the weighted loss. What was measured decides the weights of the next step."""
        settings = self.config.method
        marked, clean = self.backbone.decode(batch["latents"]), batch["clean"].float()
        with torch.autocast(marked.device.type, enabled=False):
            marked = marked.float()
            logits = self.extractor(self._distorted(self._inner(marked), rng))
            picture = self.compare(marked, clean)
            bits = bit_loss(logits, self.get_buffer("bits"), settings.gain, settings.focus)
        image, mark = self._loss_weights()
        with torch.no_grad():
            decibel, accuracy = psnr(marked, clean), bit_accuracy(logits, self.get_buffer("bits"))
        self.measured = decibel, accuracy
        metrics = {
            "image": picture.detach(),
            "bits": bits.detach(),
            "psnr": decibel.clamp(max=99.0),  # equal pictures have an infinite one, which no chart shows
            "accuracy": accuracy,
            "weight_mark": torch.tensor(mark / (image + mark)),
        }
        return image * picture + mark * bits, metrics

    def _inner(self, images: Tensor) -> Tensor:
        margin = self.config.method.margin
        return images[..., margin:-margin, margin:-margin] if margin else images

    def _distorted(self, images: Tensor, rng: torch.Generator) -> Tensor:
        if self.distortions is None:
            return images
        return self.distortions(images.clamp(-1, 1), rng, self.config.method.distort)

    def _loss_weights(self) -> tuple[float, float]:
        if self.weights is not None:
            return self.weights.weights
        return self.config.method.image_weight, 1 - self.config.method.image_weight

    def stepped(self, step: int) -> None:
        """Let the loss weights follow what the step's last micro-batch measured, in all processes alike.

        Raises:
            RunError: The key's bits are kept nowhere, so nobody could ever verify the mark.
        """
        if not self.key.id:
            raise RunError(
                "method.key: no key; give a registered key's id or method.bits_file (lrdiff train draws one)"
            )
        if self.weights is None or self.measured is None:
            return
        decibel, accuracy = self.measured
        # Errors can be averaged, decibels cannot: those of equal pictures are infinite.
        found = self.engine.mean({"error": 10 ** (-decibel / 10), "accuracy": accuracy})
        error = torch.tensor(found["error"], dtype=torch.float64)
        self.weights.update(float(-10 * torch.log10(error)), found["accuracy"])

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return the LoRA."""
        return [ParamGroup("lora", [p for p in self.vae.parameters() if p.requires_grad])]

    def artifact(self) -> Artifact:
        """Return the LoRA. Not for publishing: `lrdiff watermark fuse` merges it into the decoder."""
        if self.missed:
            log.warning("goals missed: %s; %s", "; ".join(self.missed), MISSED)
        header = Header(
            method=self.name,
            adapter="lora",
            config=self.peft_config.to_dict(),
            base_model=self.backbone.name,
            base_fingerprint=self.base,
            component="vae",
            extra={
                "key": self.key.id,
                "registered": self.config.method.bits_file is None,
                "extractor": self.extractor.sha256(),
                "model": self.config.model,
                "seed": self.config.seed,
                "missed": list(self.missed),
            },
        )
        tensors = {name: value.detach().float().cpu().clone() for name, value in state(self.vae, ADAPTER).items()}
        return Artifact(tensors=tensors, header=header)

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure PSNR and bits on generated pictures that are never trained on, and on validation photos."""
        marked = self._decode(self.held_out)
        found = {
            "psnr_generated": min(float(psnr(marked, self.clean_held_out)), 99.0),
            "accuracy_generated": self._accuracy(marked, None),
        }
        if self.distortions is not None:
            found["accuracy_distorted"] = self._accuracy(marked, rng)
        if len(self.photos):
            marked = self._decode(self.photos)
            found["psnr_photos"] = min(float(psnr(marked, self.clean_photos)), 99.0)
            found["accuracy_photos"] = self._accuracy(marked, None)
        self.missed, count = self._missed(found)
        found["goals_met"] = (count - len(self.missed)) / count
        self.met = self.met + 1 if found["goals_met"] == 1.0 else 0
        return found

    @torch.no_grad()
    def _accuracy(self, images: Tensor, rng: torch.Generator | None) -> float:
        """Return the share of right bits, after distortions where there is a generator for them."""
        total = 0.0
        for part in images.split(CHUNK):
            part = part.to(self.engine.device).clamp(-1, 1)
            part = (part * 127.5 + 127.5).round() / 127.5 - 1  # as a file holds it
            logits = self.extractor(part if rng is None else self._distorted(part, rng))
            total += len(part) * float(bit_accuracy(logits, self.get_buffer("bits")))
        return total / len(images)

    def _missed(self, found: Mapping[str, float]) -> tuple[list[str], int]:
        """Return the goals that are missed, in words, and how many there are."""
        settings = self.config.method
        goals = {
            "psnr_generated": settings.target_psnr,
            "accuracy_generated": settings.target_accuracy,
            "accuracy_distorted": settings.target_distorted,
        }
        measured = {name: (found[name], goal) for name, goal in goals.items() if name in found}
        missed = [f"{name} {value:.4g} < {goal:g}" for name, (value, goal) in measured.items() if value < goal]
        return missed, len(measured)

    def done(self) -> str:
        """Return the reason to end: all goals were met in `method.patience` evaluations in a row."""
        patience = self.config.method.patience
        return f"all goals met in {self.met} evaluations in a row" if patience and self.met >= patience else ""

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Show marked pictures and ten times what the mark changes."""
        marked = self._decode(self.shown)
        difference = EXAGGERATED * (marked - self.clean_shown)
        found = {}
        for number, start in enumerate(range(0, len(marked), self.config.watch.preview_count)):
            part = slice(start, start + self.config.watch.preview_count)
            found[f"prompt{number:02d}"] = marked[part].clamp(-1, 1)
            found[f"prompt{number:02d}-difference"] = difference[part].clamp(-1, 1)
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the loss weights and how often the goals were met."""
        found = {"met": torch.tensor(float(self.met))}
        return found | ({"loss_weights": self.weights.state()} if self.weights is not None else {})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.met = int(state["met"])
        if self.weights is not None:
            self.weights.load_state(state["loss_weights"])

    def _autocast(self) -> Any:
        dtype = self.backbone.dtype
        return torch.autocast(self.backbone.device.type, dtype=dtype, enabled=dtype != torch.float32)
