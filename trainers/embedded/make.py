"""`lrdiff embedded make NAME`: make a shipped model again, from nothing but a seed.

Only orchestration: what is rendered, trained and exported, in which order, and with which figures. Every stage leaves
something complete in the cache, so the same command after an interruption goes on where it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdiff.assets import ASSETS
from lrdiff.errors import ConfigError
from trainers.embedded.budgets import BUDGETS, Budget, Training
from trainers.embedded.training import train

if TYPE_CHECKING:
    from trainers.config import PrecisionConfig
    from trainers.embedded.shards import Shards
    from trainers.method import Method

log = logging.getLogger(__name__)

CACHE = ASSETS.parent / ".cache" / "embedded"
DATA_SEED = 1
"""Of the rendered scenes and subjects that models learn from. Figures are measured on pictures of other seeds."""
SHIPPED_BITS = 48
"""Of the shipped extractor."""

SEEDS = {
    "scenes": DATA_SEED,
    "toys": 1,
    "toys-dit": 1,
    "probe-a": 11,
    "probe-b": 23,
    "extractor": 5,
    "mark": 0,
    "subjects": 0,
    "people": 0,
    "heads": 3,
    "heads-probe-a": 31,
    "heads-probe-b": 47,
}
"""Seeds that made the shipped files."""

RECIPES: dict[str, str] = {
    "scenes": "the rendered pictures that the models learn from (kept in .cache, not shipped)",
    "toys": "text to image of the toy world at 128 px, in Stable Diffusion's own classes",
    "toys-dit": "the same world at 256 px by a diffusion transformer of 1,024 tokens, in PixArt's classes",
    "probe-a": "reads attributes and identity; may take part in a choice or a loss",
    "probe-b": "a second reader, which only measures",
    "extractor": "reads watermarks of 48 bits",
    "mark": "the example mark of toys, whose key is public",
    "heads": "draws 3D heads from any side; what a personal head is trained on",
    "heads-probe-a": "tells 3D heads apart; may take part in a loss",
    "heads-probe-b": "a second one, which only measures",
    "subjects": "pictures of individuals that captions have no words for",
    "people": "photos of an invented person, to try personal heads with",
}


def make(
    name: str,
    *,
    budget: str | Budget = "cpu",
    seed: int | None = None,
    out: Path | None = None,
    processes: int | None = None,
    photos: Path | None = None,
    bits: int = SHIPPED_BITS,
    assets: Path = ASSETS,
    cache: Path = CACHE,
) -> Path:
    """Make one model, or set of pictures, and return its folder.

    Args:
        name: A key of `RECIPES`.
        budget: "cpu" or "gpu" (which has not been run), or figures of your own.
        seed: Of initialisation and training; none takes the one that made the shipped files. The rendered data set has
            a seed of its own, `DATA_SEED`.
        out: Folder to write; none replaces the shipped one and its entry in the manifest.
        processes: How many render at once; none takes one per core.
        photos: Folder of photos that an extractor also learns from and is whitened with; none leaves them out.
        bits: Of an extractor.
        assets: Folder of shipped files.
        cache: Folder of pictures and training runs.

    Raises:
        ConfigError: There is no such recipe or budget; scenes are asked for with another seed or folder; photos or bits
            are given for something else than an extractor, or other bits than are shipped without a folder.
        RunError: A run in the cache was begun with other figures.
        BackendError: The budget needs a GPU and there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"no model {name!r} can be made; known: {', '.join(RECIPES)}")
    if isinstance(budget, str) and budget not in BUDGETS:
        raise ConfigError(f"budget {budget!r} is unknown; known: {', '.join(BUDGETS)}")
    plan = BUDGETS[budget] if isinstance(budget, str) else budget
    if name != "extractor" and (photos is not None or bits != SHIPPED_BITS):
        raise ConfigError(f"photos and bits are for the extractor, not for {name}; leave them out")
    if bits != SHIPPED_BITS and out is None:
        raise ConfigError(f"the shipped extractor reads {SHIPPED_BITS} bits; give --out for one of {bits}")
    from lrdiff.backbones import pick_device

    pick_device(plan.precision.device)  # before hours of work, not after
    work = _Workshop(plan, SEEDS[name] if seed is None else seed, cache / plan.name, processes or os.cpu_count() or 1)
    if name == "scenes":
        if out is not None or work.seed != DATA_SEED:
            raise ConfigError(f"scenes are the data set of seed {DATA_SEED} in the cache; leave out seed and folder")
        return work.scenes().path
    shipped = assets / name if name in ("mark", "subjects", "people") else assets / "models" / name
    target = shipped if out is None else out
    toys = assets / "models" / "toys"
    actions: dict[str, Callable[[Path], float]] = {
        "toys": work.toys,
        "toys-dit": lambda folder: work.toys_dit(folder, toys),
        "heads": work.heads,
        "heads-probe-a": lambda folder: work.head_probe(name, folder),
        "heads-probe-b": lambda folder: work.head_probe(name, folder),
        "subjects": work.write_subjects,
        "people": work.write_people,
        "extractor": lambda folder: work.extractor(folder, bits, photos, toys),
        "mark": lambda folder: work.mark(folder, toys, assets / "models" / "extractor"),
    }
    seconds = actions.get(name, lambda folder: work.probe(name, folder))(target)
    if out is None:
        from trainers.embedded import manifest

        made = facts(name, work.seed, plan, round(seconds, 1))
        if photos is not None:
            made["command"] += " --photos FOLDER"
        manifest.record(assets, name, target, made)
    return target


def facts(name: str, seed: int, budget: Budget, seconds: float, **more: Any) -> dict[str, Any]:
    """Return what the manifest says about how something was made.

    Args:
        name: The recipe.
        seed: Of the training.
        budget: What went into it.
        seconds: Duration of the trainings, or of the drawing.
        more: Further facts.
    """
    from lrdiff.artifact import versions
    from trainers.engine import Engine
    from trainers.rundir import git_state

    known = ", ".join(f"{package} {version}" for package, version in versions().items())
    return {
        "command": f"lrdiff embedded make {name} --budget {budget.name} --seed {seed}",
        "seed": seed,
        "device": Engine(_precision(name, budget)).describe(),
        "seconds": seconds,
        "made_by": f"commit {git_state()}, {known}",
        **more,
    }


def _precision(name: str, budget: Budget) -> PrecisionConfig:
    """Return where and in which number format most of a model was trained."""
    trainings = {"toys": budget.unet, "toys-dit": budget.dit, "extractor": budget.extractor, "heads": budget.heads[-1]}
    own = {**trainings, **budget.probes, **budget.head_probes}.get(name)
    return own.precision or budget.precision if own else budget.precision


@dataclass(frozen=True)
class _Workshop:
    """One budget, seed and cache; every stage is done only where its result is missing."""

    budget: Budget
    seed: int
    cache: Path
    processes: int

    def scenes(self) -> Shards:
        return self._pictures("scenes", self.budget.scenes, self.budget.shard)

    def subjects(self) -> Shards:
        # Whole individuals per file.
        from trainers.embedded.scenes import VIEWS

        return self._pictures("subjects", self.budget.subjects * VIEWS, self.budget.shard // VIEWS * VIEWS)

    def _pictures(self, kind: Any, count: int, shard: int) -> Shards:
        from trainers.embedded.scenes import SceneSet, render_set

        on_gpu = self.budget.precision.device == "cuda"
        return render_set(
            self.cache / kind,
            SceneSet(kind, DATA_SEED, count, shard),
            processes=1 if on_gpu else self.processes,
            device="cuda" if on_gpu else "cpu",
        )

    def toys(self, out: Path) -> float:
        """Write the model; return the seconds of training."""
        import torch
        from diffusers import AutoencoderKL

        from trainers.embedded.export import export_toys, export_vae
        from trainers.embedded.latents import write_latents
        from trainers.embedded.toys_unet import SMALL, ToysUnet, ToysUnetConfig
        from trainers.embedded.toys_vae import ToysVae, ToysVaeConfig

        scenes = self.scenes()
        plan = self.budget.vae
        vae_config = ToysVaeConfig(scenes=scenes.path, **plan.method)
        seconds = self._train("vae", ToysVae, vae_config, plan)
        folder, latents = self.cache / f"vae-{self.seed}-final", self.cache / f"latents-{self.seed}"
        if not folder.exists():
            export_vae(self._run("vae"), scenes, folder)
        plan = self.budget.decoder
        decoder_config = ToysVaeConfig(scenes=scenes.path, start=folder, **plan.method)
        seconds += self._train("decoder", ToysVae, decoder_config, plan)
        plan = self.budget.unet
        # Half precision changes latents by less than 1 % of their spread and takes a quarter of the time.
        vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.bfloat16)
        vae = vae.to(self._device(), memory_format=torch.channels_last)
        for place, pixels in ((latents, None), (latents / SMALL, scenes.side // 2)):
            if (pixels is None or plan.method.get("small_steps")) and not (place / "latents.npy").exists():
                write_latents(vae, scenes, place, pixels=pixels)
        seconds += self._train("unet", ToysUnet, ToysUnetConfig(latents=latents, **plan.method), plan)
        decoder = self.cache / f"decoder-{self.seed}-final"
        export_vae(self._run("decoder"), scenes, decoder)
        export_toys(decoder, self._run("unet"), out)
        return seconds

    def toys_dit(self, out: Path, toys: Path) -> float:
        """Write the model, on the autoencoder of `toys`; return the seconds of training."""
        import torch
        from diffusers import AutoencoderKL

        from trainers.embedded.export import export_toys_dit
        from trainers.embedded.latents import write_latents
        from trainers.embedded.toys_dit import ToysDit, ToysDitConfig

        plan, scenes, latents = self.budget.dit, self.scenes(), self.cache / f"latents-dit-{self.seed}"
        for side, count in self.budget.dit_scenes.items():
            if not (latents / str(side) / "latents.npy").exists():
                # Half precision changes latents by less than 1 % of their spread and takes a quarter of the time.
                vae: Any = AutoencoderKL.from_pretrained(toys / "vae", torch_dtype=torch.bfloat16)
                vae = vae.to(self._device(), memory_format=torch.channels_last)
                write_latents(vae, scenes, latents / str(side), pixels=8 * side, count=count or None)
        config = ToysDitConfig(latents=latents, **plan.method)
        seconds = self._train("dit", ToysDit, config, plan)
        export_toys_dit(toys / "vae", self._run("dit"), out)
        return seconds

    def probe(self, name: str, out: Path) -> float:
        """Write a probe; return the seconds of training."""
        from trainers.embedded.export import export_probe
        from trainers.embedded.probe import ProbeConfig, TrainProbe

        plan = self.budget.probes[name]
        config = ProbeConfig(scenes=self.scenes().path, subjects=self.subjects().path, **plan.method)
        seconds = self._train(name, TrainProbe, config, plan)
        export_probe(TrainProbe(config), self._run(name), out)
        return seconds

    def head_probe(self, name: str, out: Path) -> float:
        """Write an identity network of heads; return the seconds of training."""
        from trainers.embedded.export import export_probe
        from trainers.embedded.head_probes import HeadProbeConfig, TrainHeadProbe, write_people

        plan, pictures = self.budget.head_probes[name], self.cache / f"people-{self.budget.people}.npy"
        config = HeadProbeConfig(pictures=pictures, **plan.method)
        if not pictures.is_file():
            write_people(pictures, self.budget.people, config.views, DATA_SEED)
        seconds = self._train(name, TrainHeadProbe, config, plan)
        export_probe(TrainHeadProbe(config), self._run(name), out)
        return seconds

    def extractor(self, out: Path, bits: int, photos: Path | None, toys: Path) -> float:
        """Write an extractor; return the seconds of training."""
        from trainers.embedded.export import export_extractor
        from trainers.embedded.extractor import ExtractorConfig, TrainExtractor
        from trainers.embedded.sources import HELD_OUT
        from trainers.embedded.unmarked import draw_outputs, kinds

        plan, count, scenes = self.budget.extractor, self.budget.unmarked, self.scenes()
        config = ExtractorConfig(scenes=scenes.path, photos=photos, bits=bits, decoder=toys / "vae", **plan.method)
        name = f"extractor-{bits}"
        seconds = self._train(name, TrainExtractor, config, plan)
        outputs = draw_outputs(toys, scenes, HELD_OUT, 2 * count, self.cache, self._device())
        export_extractor(self._run(name), kinds(scenes, HELD_OUT, outputs, photos, 2 * count), count, out)
        return seconds

    def mark(self, out: Path, toys: Path, extractor: Path) -> float:
        """Write the example mark; return the seconds of training."""
        from trainers.embedded.example_mark import make_mark

        return make_mark(out, self._run("mark"), toys, extractor, self.seed, self.budget.mark)

    def heads(self, out: Path) -> float:
        """Write the generator of heads; return the seconds of training."""
        from trainers.embedded.heads import HeadsConfig, TrainHeads
        from trainers.embedded.heads_make import export_heads

        seconds, start = 0.0, None
        for number, plan in enumerate(self.budget.heads, 1):
            name = f"heads-{number}"
            seconds += self._train(name, TrainHeads, HeadsConfig(**plan.method, start=start), plan)
            start = self._run(name)
        assert start is not None
        export_heads(start, out)
        return seconds

    def write_subjects(self, out: Path) -> float:
        """Draw the shipped subjects; return the seconds it took."""
        from trainers.embedded.export import replacing_folder
        from trainers.embedded.subjects import write_subjects

        begin = time.monotonic()
        with replacing_folder(out) as folder:
            write_subjects(folder, self.seed)
        return time.monotonic() - begin

    def write_people(self, out: Path) -> float:
        """Draw the shipped photos of people; return the seconds it took."""
        from trainers.embedded.export import replacing_folder
        from trainers.embedded.people import write_people

        begin = time.monotonic()
        with replacing_folder(out) as folder:
            write_people(folder, self.seed)
        return time.monotonic() - begin

    def _train(self, name: str, method: Callable[[Any], Method[Any]], config: Any, plan: Training) -> float:
        """Train, or go on, or do nothing when it is done. Return the seconds of all its steps."""
        precision = plan.precision or self.budget.precision
        return train(self._run(name), name, method, config, plan, precision, self.seed)

    def _run(self, name: str) -> Path:
        return self.cache / f"{name}-{self.seed}"

    def _device(self) -> str:
        return "cuda" if self.budget.precision.device == "cuda" else "cpu"
