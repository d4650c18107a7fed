"""`lrdiff watermark attack`: what is left of a mark after the attack suite."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from app.commands.console import logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ArtifactError, ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lrdiff.backbones import Backbone
    from lrdiff.watermark.attack_report import Row
    from lrdiff.watermark.keys import Key
    from lrdiff.watermark.model_attacks import SetAttack
    from lrdiff.watermark.reading import Network

PROG = "lrdiff watermark attack"
ABOUT = """Attack marked pictures in every way of the suite, and write how much of the mark is left: a table (JSON, CSV,
Markdown) and curves of bit accuracy and detection rates against strength and PSNR.

IMAGES are files or folders of pictures that carry one key, as the model wrote them.

examples:
  lrdiff watermark attack outputs --key 4f1c2a --out report
  lrdiff watermark attack outputs --key 4f1c2a --attacks crop jpeg --out report-crop
  lrdiff watermark attack outputs --key 4f1c2a --model toys --decoder runs/mark/decoder --out report-all
"""


class AttackOptions(Options):
    """What to attack, and how."""

    key: str = ""
    """Id of the key in the registry that the pictures carry."""

    bits_file: Path | None = None
    """Instead of --key: a text file with the key's bits, a line of 0 and 1."""

    registry: str = ""
    """Registry of keys: an SQLite file or a PostgreSQL URL. Empty takes yours."""

    key_file: Path | None = None
    """Secret that opens the registry's bits. None takes yours."""

    extractor: Path | None = None
    """The extractor's file. None takes the shipped one."""

    trust_extractor_code: bool = False
    """The extractor is a TorchScript file (.pt): its code may run with your rights."""

    attacks: tuple[str, ...] = ()
    """Names of attacks; none runs all that can be made with what is given."""

    limit: PositiveInt | None = None
    """Take at most this many pictures, the first in the order of names."""

    out: Path = Path("attack-report")
    """New folder for the report."""

    seed: NonNegativeInt = 0
    """Of noise, places and orders."""

    model: str = ""
    """Base model whose public autoencoder the attacker has: adds re-encoding and swapping the decoder."""

    decoder: Path | None = None
    """The marked decoder's folder: adds fine-tuning it. Needs --model."""

    other_decoder: Path | None = None
    """A decoder with another key: adds overwriting by it. Needs --model."""

    photos: Path | None = None
    """Unmarked pictures that the decoder is fine-tuned on; none takes scenes of the procedural world."""

    tune_steps: tuple[NonNegativeInt, ...] = (0, 10, 30, 100)
    """After how many steps of fine-tuning to look."""

    tune_rate: PositiveFloat = 1e-4
    """Learning rate of the fine-tuning."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff watermark attack`."""
    given = read_flags(arguments, [AttackOptions], prog=f"{PROG} IMAGES...", about=ABOUT)
    options = build(AttackOptions, given.values)
    if not given.words:
        raise ConfigError(f"{PROG} takes pictures or folders of pictures; see {PROG} --help")
    if (options.decoder or options.other_decoder) and not options.model:
        raise ConfigError("--decoder and --other-decoder need --model: the attacks go through its public encoder")
    from lrdiff.watermark import attack_folder, attack_report
    from lrdiff.watermark.attacks import choose
    from lrdiff.watermark.model_attacks import NAMES
    from lrdiff.watermark.verifier import open_extractor

    out = options.out.expanduser()
    if out.exists():
        raise ArtifactError(f"{out}: is there already; choose another folder, or remove it first")
    attacks = choose(options.attacks, NAMES)
    extractor = open_extractor(options.extractor, consent=options.trust_extractor_code)
    key = _bits(options, extractor)
    files = _files(given.words)[: options.limit]
    images = _read(files)
    with logging_to_stderr():
        more, left_out = _set_attacks(options, extractor, images)
        say(f"{len(images)} pictures; {len(attacks)} attacks on single pictures, {len(more)} on all together")
        for text in left_out:
            say(f"left out: {text}")
        rows = attack_report.run(attacks, images, key, extractor, options.seed, _show)
        for attack in more:
            for strength in attack.strengths:
                rows.append(attack_report.row(attack, strength, extractor, key, images, attack(images, strength)))
                _show(rows[-1])
        facts = {
            "images": len(images),
            "keys": 1,
            "key": options.key or None,
            "extractor_sha256": extractor.sha256(),
            "model": options.model or None,
            "seed": options.seed,
            "left_out": left_out,
        }
        path = attack_folder.write(out, rows, facts)
    _warn(rows)
    print(path)
    return 0


def _bits(options: AttackOptions, extractor: Network) -> str:
    """Return the key's bits from the registry or from a file."""
    if bool(options.key) == bool(options.bits_file):
        raise ConfigError("which key do the pictures carry? give --key ID or --bits-file FILE, one of them")
    if options.bits_file is not None:
        return _bits_of_file(options.bits_file.expanduser())
    from lrdiff.watermark.keys import open_registry

    found: Key = open_registry(options.registry or None, options.key_file, create=False).get(options.key)
    if found.extractor_sha256 != extractor.sha256():
        raise ConfigError(
            f"key {found.id} is read by extractor {found.extractor_sha256[:12]}, this one is "
            f"{extractor.sha256()[:12]}; give the key's own with --extractor"
        )
    if found.revoked is not None:
        say(f"key {found.id} was revoked on {found.revoked}; it is measured all the same")
    return found.bits


def _bits_of_file(path: Path) -> str:
    try:
        bits = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a key ({error}); give a text file with a line of 0 and 1"
        ) from error
    if not bits or set(bits) - {"0", "1"}:
        raise DataError(f"{path}: holds no key; give a text file with a line of 0 and 1")
    return bits


def _files(words: Sequence[str]) -> list[Path]:
    from lrdiff.images import EXTENSIONS

    files: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
            if not found:
                raise DataError(f"{path}: holds no pictures; give the folder they are in")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def _read(files: Sequence[Path]) -> list[Image]:
    from lrdiff.images import read_image

    return [read_image(file) for file in files]


def _show(row: Row) -> None:
    rate, _ = row.detected(1e-6)
    damage = "" if row.psnr is None else f"  PSNR {row.psnr:.1f} dB"
    say(f"{row.attack:<24} {row.strength:<6g} bits {row.accuracy:.3f}  detected at 1e-06: {rate:.3f}{damage}")


def _warn(rows: Sequence[Row]) -> None:
    """Say so when the pictures do not carry the key to begin with."""
    clean = next((row for row in rows if row.attack == "none"), None)
    if clean is not None and clean.detected(1e-6)[0] < 0.5:
        say(
            f"most pictures do not carry this key even before any attack (bit accuracy {clean.accuracy:.3f}); "
            "is it the right key, and are these the pictures as the model wrote them?"
        )


def _set_attacks(
    options: AttackOptions, extractor: Network, images: Sequence[Image]
) -> tuple[list[SetAttack], list[str]]:
    """Return the attacks that need more than one picture, and what is left out and why.

    Raises:
        ConfigError: An attack that was asked for by name cannot be made.
    """
    from lrdiff.watermark.model_attacks import NAMES

    found: list[SetAttack] = []
    left_out: list[str] = []
    for name in [name for name in NAMES if not options.attacks or name in options.attacks]:
        obstacle = _obstacle(name, options, images)
        if obstacle is None:
            found.append(_made(name, options, extractor, images))
            left_out += _too_many(name, len(images))
        elif options.attacks:
            raise ConfigError(f"{name} cannot be made: {obstacle}")
        else:
            left_out.append(f"{name}: {obstacle}")
    return found, left_out


def _obstacle(name: str, options: AttackOptions, images: Sequence[Image]) -> str | None:
    """Return why an attack on a set of pictures cannot be made, or None."""
    from lrdiff.watermark.model_attacks import COUNTS

    if name == "overwrite-pixels":
        return None
    if len({image.size for image in images}) > 1:
        return "the pictures differ in size"
    if name == "average":
        return None if len(images) >= COUNTS[0] else f"it takes at least {COUNTS[0]} pictures, there are {len(images)}"
    if not options.model:
        return "it needs --model"
    if name == "overwrite-decoder" and options.other_decoder is None:
        return "it needs --model and --other-decoder"
    if name == "fine-tune" and options.decoder is None:
        return "it needs --model and --decoder"
    return None


def _too_many(name: str, images: int) -> list[str]:
    """Say which numbers of pictures are too many to average."""
    from lrdiff.watermark.model_attacks import COUNTS

    rest = [str(count) for count in COUNTS if count > images and name == "average"]
    return [f"{name} of {', '.join(rest)} pictures: there are {images}"] if rest else []


def _made(name: str, options: AttackOptions, extractor: Network, images: Sequence[Image]) -> SetAttack:
    """Return an attack whose needs are met."""
    from lrdiff.watermark import model_attacks

    if name == "overwrite-pixels":
        return model_attacks.overwrite_pixels(extractor, _other_key(options.seed, extractor.bits))
    if name == "average":
        return model_attacks.average(tuple(count for count in model_attacks.COUNTS if count <= len(images)))
    from lrdiff.decoders import load_vae

    backbone = _backbone(options.model)
    vae = backbone.vae
    if name == "overwrite-decoder" and options.other_decoder is not None:
        return model_attacks.overwrite(vae, load_vae(options.other_decoder.expanduser()))
    if name == "fine-tune" and options.decoder is not None:
        clean, marked = _clean(options, backbone.resolution), load_vae(options.decoder.expanduser())
        steps = tuple(sorted(set(options.tune_steps)))
        return model_attacks.fine_tune(vae, marked, clean, steps=steps, lr=options.tune_rate, seed=options.seed)
    return model_attacks.swap(vae) if name == "swap" else model_attacks.reencode(vae)


@functools.cache
def _backbone(model: str) -> Backbone:
    from lrdiff import backbones

    return backbones.load(model)


def _other_key(seed: int, bits: int) -> str:
    """Return the key an attacker writes. It protects nothing, so a repeatable one will do."""
    import torch

    from lrdiff.rng import stream

    return "".join(map(str, torch.randint(2, (bits,), generator=stream(seed, "other key")).tolist()))


def _clean(options: AttackOptions, side: int) -> Any:
    """Return unmarked pictures [N, 3, side, side] for an attacker to train with."""
    import torch

    from lrdiff.images import crop_to, to_tensor
    from lrdiff.world.render import render
    from lrdiff.world.toys import sample_scenes

    if options.photos is None:
        return render(sample_scenes(options.seed, range(64)), size=min(side, 128)).images
    files = _files([str(options.photos)])
    return torch.stack([to_tensor(crop_to(image, side, side)) for image in _read(files)])
