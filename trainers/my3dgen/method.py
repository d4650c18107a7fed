"""`My3DGen`: find the anchors of a person's photos, then tune a low-rank adapter on a generator of heads."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from lrdiff.artifact import Artifact, Header
from lrdiff.errors import ConfigError
from lrdiff.lpips import LPIPS, load_lpips
from lrdiff.rng import derive
from lrdiff.triplane.cameras import mirrored
from lrdiff.triplane.generator import Window
from lrdiff.triplane.inversion import Anchors, InversionConfig, invert
from lrdiff.triplane.lora import LoraConfig, Personal
from lrdiff.triplane.losses import identity_distance, identity_symmetry, pixel_symmetry, psnr, reconstruction
from lrdiff.triplane.personal import ADAPTER, ANCHORS, CAMERAS, COMPONENT, orbit
from lrdiff.triplane.store import fingerprint, load
from trainers.data import epoch_indices
from trainers.engine import Engine
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.my3dgen.config import My3DGenRun
from trainers.my3dgen.identity import check_person, knows, load_identity
from trainers.my3dgen.photos import listed, read_cameras, read_photos

log = logging.getLogger(__name__)

WIDEST = 1.0
"""Widest yaw, in radians, at which both sides are compared."""
HIGHEST = 0.25
UNCHECKED = (
    "people: not checked that all photos show one person: the shipped network knows only heads of shipped generators; "
    "method.arcface takes one of your own"
)
POOR = 15.0
"""Anchors below this PSNR, in dB, hardly show what is on the photo."""


class My3DGen(Method[My3DGenRun]):
    """Loss: MSE + pyramid of absolute differences, of raw and of finished picture, plus weighted symmetry and identity.

    Stage 1 is done when the method is built: anchors (and cameras) of all photos, which then stay as they are. Stage 2
    is the training: the adapter learns to draw every photo from its anchor. The mapping is frozen.

    Differs from the paper: the decoder is trained too unless it is told not to, and what is trained whole more slowly;
    a pyramid takes the place of LPIPS, unless the user gives its weights; each step looks at a part of the photos; the
    symmetry learns from mirrored photos, with cameras mirrored and anchors of their own, or compares pixels where they
    can agree, unless identity features are asked for; all anchors are searched together, by pixels, as states of one
    person.
    """

    def __init__(self, config: My3DGenRun, name: str, engine: Engine, anchors: Anchors | None = None) -> None:
        """Read generator and photos, search the anchors, add the adapter.

        Args:
            config: The whole run configuration.
            name: Registry name of the method, for the artifact's header.
            engine: Says device and number format.
            anchors: Those of all that is learned from where they were found before, by equal settings.

        Raises:
            LrdiffError: Generator, photos or cameras cannot be used.
        """
        super().__init__(config)
        settings = config.method
        self.name, self.engine = name, engine
        folder = config.find_model()
        self.base = fingerprint(folder)
        self.generator = load(folder).to(engine.device)
        photos, self.names, self.notes = read_photos(config.data.images, self.generator.config.side)
        self.lpips = self._load_lpips()
        uses = settings.identity > 0 or (settings.symmetry > 0 and settings.symmetry_form == "identity")
        checks = knows(settings.arcface, folder)
        self.identity = load_identity(settings.arcface, engine.device) if uses or checks else None
        self.person = check_person(photos, self.names, self.identity) if checks and self.identity else UNCHECKED
        cameras = read_cameras(settings.cameras, self.names).to(engine.device) if settings.cameras else None
        self.pictures = photos
        if settings.symmetry > 0 and settings.symmetry_form == "photos":
            self.pictures = torch.cat([photos, photos.flip(3)])
            cameras = torch.cat([cameras, mirrored(cameras)]) if cameras is not None else None
        self.learned = anchors or self._search(self.pictures.to(engine.device), cameras, settings.refine)
        self.anchors = self.learned.first(len(photos))
        self.notes += self._doubts()
        for note in self.notes:
            log.warning("%s", note)
        validation = config.data.validation
        self.held_out = photos[:0]
        if validation is not None:
            self.held_out, _, notes = read_photos(validation, self.generator.config.side, "data.validation")
            for note in notes:
                log.warning("%s", note)
            found = self._search(self.held_out.to(engine.device), None, True)
            self.held_out_anchors = found
        self.photos = photos
        lora = LoraConfig(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(LoraConfig)})
        self.personal = Personal(self.generator, lora)

    def _load_lpips(self) -> LPIPS | None:
        """Read the user's LPIPS, where there is one and every picture that it is to compare is large enough."""
        settings, config = self.config.method, self.generator.config
        if settings.lpips is None:
            return None
        network = load_lpips(settings.lpips).to(self.engine.device)
        side = settings.patch if 0 < settings.patch < config.render.side else config.render.side
        if side < network.smallest:
            raise ConfigError(
                f"method.lpips: compares pictures of {network.smallest} pixels or more, and each step renders {side} "
                f"(method.patch {settings.patch}, the generator {config.render.side}); enlarge the patch, or drop it"
            )
        return network

    def _search(self, photos: Tensor, cameras: Tensor | None, refine: bool) -> Anchors:
        settings = self.config.method
        whole = self.generator.config.render.side
        side = min(settings.anchor_side, whole) or None
        if side is not None and whole % side:
            raise ConfigError(
                f"method.anchor_side={side} does not divide the {whole} pixels that this generator renders in a row; "
                f"give one that does, such as {whole // 2}"
            )
        kind = "unknown" if cameras is None else "refine" if refine else "given"
        search = InversionConfig(
            steps=settings.anchor_steps,
            lr=settings.anchor_lr,
            together=settings.together,
            extended=settings.space == "w+",
            cameras=kind,
            side=side,
            seed=derive(self.config.seed, "anchors"),
        )
        return invert(self.generator, photos, cameras, search)

    def _doubts(self) -> list[str]:
        """Say what is likely to go wrong with these photos."""
        found = zip(self.names, self.anchors.psnr.tolist(), strict=True)
        poor = [f"{name} ({value:.1f} dB)" for name, value in found if value < POOR]
        doubts = []
        if poor:
            doubts.append(
                f"data.images: the nearest head that the generator draws looks little like {listed(poor)}; is a head "
                f"upright in the middle, and of the kind that it draws? Below {POOR:.0f} dB little can be learned"
            )
        if len(self.names) == 1:
            doubts.append(
                "data.images: one photo: sides that it does not show are guessed; take about ten, from all sides"
            )
        return doubts

    def describe(self) -> list[str]:
        """Return the preflight in words."""
        count = sum(p.numel() for _, p in self.personal.named_parameters())
        frozen = "mapping" if self.config.method.decoder or self.config.method.full else "mapping and decoder"
        low, mean = float(self.anchors.psnr.min()), float(self.anchors.psnr.mean())
        return [
            f"generator {self.base[:12]}: {frozen} frozen, {self.generator.config.side} px",
            f"{self.name}: {count:,} parameters on {len(self.personal.targets)} layers",
            *self.notes,
            self.person,
            f"{len(self.names)} photos, anchors at {mean:.1f} dB, the poorest at {low:.1f} dB",
        ]

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return photos, anchors and cameras of micro-batch `index`; every epoch is a new permutation."""
        chosen = epoch_indices(index, self.config.data.batch_size, len(self.pictures), self.config.seed)
        settings = self.config.method
        flipped = torch.tensor(chosen) >= len(self.photos)
        compares = settings.symmetry > 0 and settings.symmetry_form != "photos"
        return {
            "photos": self.pictures[chosen],
            "ws": self.learned.ws[chosen],
            "cameras": self.learned.cameras[chosen],
            "weight": torch.where(flipped, settings.symmetry, 1.0),
            "symmetric": torch.tensor(compares and index % settings.symmetry_every == 0),
            "identity": torch.tensor(settings.identity > 0 and index % settings.identity_every == 0),
        }

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch. Depths are jittered from `rng`, and so are the poses of the symmetry."""
        ws = batch["ws"].expand(-1, self.generator.config.latents, -1)
        window = self._window(rng)
        seen = self.generator.view(ws, batch["cameras"], rng=rng, window=window)
        photos = batch["photos"] if window is None else window.crop(batch["photos"], self.generator.config.render.side)
        loss = (batch["weight"] * reconstruction(seen.image.float(), photos, self.lpips)).mean()
        metrics = {"psnr": psnr(seen.image.detach().float(), photos).clamp(max=99.0).mean()}
        if self.generator.config.superres is not None:
            side = (seen.raw.shape[-1],) * 2
            small = torch.nn.functional.interpolate(photos, side, mode="bilinear", antialias=True)
            loss = loss + (batch["weight"] * reconstruction(seen.raw.float(), small, self.lpips)).mean()
        if bool(batch["symmetric"]):
            term = self._symmetry(ws, window, rng)
            metrics["symmetry"] = term.detach()
            loss = loss + self.config.method.symmetry * term
        if bool(batch["identity"]) and self.identity is not None:
            whole = seen.image if window is None else self.generator.view(ws, batch["cameras"], rng=rng).image
            term = identity_distance(self.identity.embed, whole.float(), batch["photos"])
            metrics["identity"] = term.detach()
            loss = loss + self.config.method.identity * term
        return loss, metrics

    def _window(self, rng: torch.Generator) -> Window | None:
        """Draw the part of the pictures that this step looks at."""
        side, size = self.generator.config.render.side, self.config.method.patch
        if not 0 < size < side:
            return None
        top, left = torch.randint(0, side - size + 1, (2,), generator=rng).tolist()
        return Window(top, left, size)

    def _symmetry(self, ws: Tensor, window: Window | None, rng: torch.Generator) -> Tensor:
        """Compare one random view of each head with the flipped view from the other side."""
        angles = (torch.rand(len(ws), 2, generator=rng) * 2 - 1) * torch.tensor([WIDEST, HIGHEST])
        camera = orbit(self.generator, angles).to(ws.device)
        planes = self.generator.planes(ws)
        flipped = window.mirrored(self.generator.config.render.side) if window else None
        if self.identity is not None and self.config.method.symmetry_form == "identity":
            pair = (self.generator.view(ws, c, planes=planes).image.float() for c in (camera, mirrored(camera)))
            return identity_symmetry(self.identity.embed, *pair)
        views = ((camera, window), (mirrored(camera), flipped))
        one, other = (self.generator.view(ws, c, planes=planes, window=part).image.float() for c, part in views)
        return pixel_symmetry(one, other, self.config.method.symmetry_temperature)

    def param_groups(self) -> Iterable[ParamGroup]:
        """Return the low-rank matrices, and the weights trained whole, which no decay pulls to zero."""
        named = list(self.personal.named_parameters())
        lora = [p for name, p in named if ".delta." in name]
        whole = [p for name, p in named if ".delta." not in name]
        return [ParamGroup("lora", lora), ParamGroup("whole", whole, self.config.method.whole_rate, decay=False)]

    def artifact(self) -> Artifact:
        """Return adapter and anchors."""
        settings = self.config.method
        header = Header(
            method=self.name,
            adapter=ADAPTER,
            config=dataclasses.asdict(self.personal.config),
            base_model=self.config.model,
            base_fingerprint=self.base,
            component=COMPONENT,
            extra={"photos": len(self.names), "space": settings.space, "seed": self.config.seed},
        )
        anchors = {ANCHORS: self.anchors.ws.detach().float().cpu(), CAMERAS: self.anchors.cameras.float().cpu()}
        return Artifact(tensors=self.personal.state() | anchors, header=header)

    @torch.no_grad()
    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        """Measure PSNR on the photos, and on held-out ones from anchors that were found before training."""
        found = {"psnr_photos": self._psnr(self.anchors, self.photos)}
        if len(self.held_out):
            found["psnr_validation"] = self._psnr(self.held_out_anchors, self.held_out)
        return found

    def _psnr(self, anchors: Anchors, photos: Tensor) -> float:
        values = []
        for number in range(len(photos)):
            part = slice(number, number + 1)
            seen = self.generator.view(self._latents(anchors.ws[part]), anchors.cameras[part])
            values.append(psnr(seen.image.float().cpu(), photos[part]).clamp(max=99.0))
        return float(torch.cat(values).mean())

    def _latents(self, ws: Tensor) -> Tensor:
        return ws.expand(-1, self.generator.config.latents, -1)

    @torch.no_grad()
    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Show the first photos' heads as they were photographed and from both sides."""
        count = min(self.config.watch.preview_count, len(self.photos))
        ws = self._latents(self.anchors.ws[:count])
        planes = self.generator.planes(ws)
        views = {"photo": self.anchors.cameras[:count]}
        for name, yaw in (("left", -0.5), ("front", 0.0), ("right", 0.5)):
            views[name] = orbit(self.generator, torch.tensor([[yaw, 0.0]]).expand(count, -1)).to(ws.device)
        seen = {name: self.generator.view(ws, camera, planes=planes).image for name, camera in views.items()}
        return {name: image.float().cpu().clamp(-1, 1) for name, image in seen.items()}
