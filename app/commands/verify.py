"""`lrdiff verify`: does a picture carry a mark?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.console import logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError, DataError, LrdiffError

if TYPE_CHECKING:
    from lrdiff.watermark.keys import Key
    from lrdiff.watermark.null import Null
    from lrdiff.watermark.pooling import PooledVerdict
    from lrdiff.watermark.reading import Network
    from lrdiff.watermark.verdict import Verdict

PROG = "lrdiff verify"
ABOUT = """Judge whether pictures carry a mark: detected, not detected, or inconclusive, and why.

"Not detected" says that this mark was not found. It does not say that a picture is genuine or made without AI: a mark
is lost when the decoder is exchanged, and pictures of other models never had it.

examples:
  lrdiff verify picture.png                        compare with all keys of the registry; their number is corrected for
  lrdiff verify picture.png --key 17f05adcb8       compare with one key
  lrdiff verify a.png b.png c.png --pool 3         are they from one marked model? All three count, none is left out
  lrdiff verify *.png --key 17f05adcb8 --json      for scripts: the answer is in "verdict"

notes:
  Every picture is a question of its own with the error rate --alpha; with --pool all pictures are one question.
  Exit code: 0 every file was read, whatever the answer; 2 a file could not be read, or something else you can put
  right; 1 a fault. A script reads the answer with --json, never from the exit code."""


class VerifyOptions(Options):
    """What to look for, and how surely."""

    key: str = ""
    """Id of a key in the registry. Without --key and --bits all keys that are not revoked are tried."""

    bits: str = ""
    """Bits of a key that is in no registry, a string of 0 and 1. Other users can see the command line; prefer --key."""

    extractor: Path | None = None
    """File of the extractor; none takes the shipped one."""

    trust_extractor_code: bool = False
    """The extractor is a TorchScript file (.pt): its code may run with your rights."""

    alpha: float = 1e-6
    """Accepted probability that a picture without the mark is called detected, over all keys and readings."""

    search: bool = False
    """Also read the picture mirrored, turned, tilted and resized: finds marks in pictures that were made smaller or put
    askew. 49 readings, which are corrected for and take as many times as long."""

    pool: int | None = None
    """The pictures are this many different ones of a single model, and are judged together."""

    null: Path | None = None
    """Folder of unmarked pictures, or a file made by --null-out: shows how the extractor behaves on them. Needed for an
    extractor without a calibration."""

    null_out: Path | None = None
    """Write what was read in the pictures of --null to this file, so that they need not be read again."""

    registry: str = ""
    """Registry of keys: a file or postgresql://USER@HOST/NAME. Without it $LRDIFF_REGISTRY, else the user's own."""

    key_file: Path | None = None
    """Secret file that opens the registry. Without it $LRDIFF_KEY_FILE, else the user's own."""

    json_: bool = False
    """Print as JSON."""


@dataclass(frozen=True, slots=True)
class Sought:
    """The keys to look for.

    Attributes:
        keys: What `verify` takes.
        names: Their ids, in order; empty for bits that are in no registry.
        owner: Of the only key, or empty.
        doubt: Why a match would prove nothing, or None.
    """

    keys: Any = field(repr=False)
    names: tuple[str, ...] = ()
    owner: str = ""
    doubt: str | None = None


def main(arguments: list[str]) -> int:
    """Run `lrdiff verify`. Verdicts go to stdout, everything else to stderr."""
    given = read_flags(arguments, [VerifyOptions], prog=f"{PROG} FILE...", about=ABOUT)
    options = build(VerifyOptions, given.values)
    if not given.words:
        raise ConfigError(f"which picture? Write {PROG} FILE...; see {PROG} --help")
    if options.key and options.bits:
        raise ConfigError("--key and --bits both say what to look for; give one of them")
    if options.null_out and not options.null:
        raise ConfigError("--null-out writes what was read in the pictures of --null; give --null FOLDER too")
    from lrdiff.watermark.verifier import open_extractor

    files = [Path(word).expanduser() for word in given.words]
    with logging_to_stderr():
        network = open_extractor(options.extractor, consent=options.trust_extractor_code)
        try:
            sought = _sought(options, network)
        except LrdiffError as error:
            if any(file.exists() for file in files):
                raise
            # A mistyped name is no reason to go and make keys.
            raise DataError(f"{files[0]}: is not there; name a picture") from error
        null = _null(options, network)
        judge = _pool if options.pool is not None else _each
        return judge(files, options, network, sought, null)


def _sought(options: VerifyOptions, network: Network) -> Sought:
    """Return the keys to look for.

    Raises:
        ConfigError: No key counts, or the key belongs to another extractor.
        RegistryError: The registry or the key is not there.
    """
    if options.bits:
        return Sought(options.bits)
    from lrdiff.watermark.keys import open_registry

    registry = open_registry(options.registry or None, options.key_file, create=False)
    extractor = network.sha256()
    if options.key:
        return _one(registry.get(options.key), extractor)
    found = registry.candidates(extractor, network.bits)
    if found.elsewhere:
        say(f"{found.elsewhere} keys of {registry.name} belong to other extractors and are not tried")
    if not found.ids:
        raise ConfigError(
            f"{registry.name}: holds no key for this extractor that counts; make one with lrdiff watermark keys new, "
            "or name the extractor of your keys with --extractor"
        )
    return Sought(found.table, found.ids)


def _one(key: Key, extractor: str) -> Sought:
    """Return one registered key, with what is to be said about it."""
    if key.extractor_sha256 != extractor:
        raise ConfigError(
            f"key {key.id} is read with extractor {key.extractor_sha256[:12]}..., and this one is {extractor[:12]}...; "
            "name the key's own with --extractor"
        )
    doubt = None
    if key.revoked is not None:
        doubt = f"the key was revoked on {key.revoked} ({key.reason}), so agreeing with it proves nothing any more"
    if key.given:
        say(f"key {key.id} was given by a person, not drawn at random: the probabilities hold only as far as its bits "
            "have nothing to do with what the extractor sees in unmarked pictures")  # fmt: skip
    return Sought([key.bits], (key.id,), key.owner, doubt)


def _null(options: VerifyOptions, network: Network) -> Null | None:
    """Read the unmarked pictures, if there are any."""
    if options.null is None:
        return None
    from lrdiff.watermark.null import read_null

    null = read_null(network, options.null.expanduser())
    say(f"{len(null)} unmarked pictures")
    if options.null_out is not None:
        null.save(options.null_out.expanduser())
        say(f"written: {options.null_out}")
    return null


def _each(files: Sequence[Path], options: VerifyOptions, network: Network, sought: Sought, null: Null | None) -> int:
    """Judge every picture on its own."""
    from lrdiff.watermark.verifier import verify_many

    verdicts = verify_many(
        files, sought.keys, options.alpha, network, search=options.search, null=null, doubt=sought.doubt
    )
    records: list[dict[str, Any]] = []
    failed = 0
    for file, found in zip(files, verdicts, strict=True):
        if isinstance(found, LrdiffError):
            failed += 1
            say(str(found))
            records.append({"file": str(file), "error": str(found)})
        elif options.json_:
            records.append({"file": str(file), **_record(found, sought)})
        else:
            print("\n".join(_words(str(file), found, sought)), flush=True)
    if options.json_:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    return 2 if failed else 0


def _pool(files: Sequence[Path], options: VerifyOptions, network: Network, sought: Sought, null: Null | None) -> int:
    """Judge all pictures together."""
    from lrdiff.watermark.pooling import verify_pooled

    assert options.pool is not None
    found = verify_pooled(
        files,
        sought.keys,
        options.alpha,
        network,
        count=options.pool,
        search=options.search,
        null=null,
        doubt=sought.doubt,
    )
    if options.json_:
        print(json.dumps({"files": [str(file) for file in files], **_record(found, sought)}, indent=2))
        return 0
    rows = [
        ("binomial", f"p {found.p_value:.2g} for one key; {_needed(found)}"),
        ("sign flip", f"p {found.votes_p_value:.2g} for one key, the images held fixed"),
        ("each image", " ".join(map(str, found.each)) + f" of {found.bits // found.images}"),
        ("prepared", found.preprocessing),
    ]
    print("\n".join(_lines(f"{len(files)} images together", found, sought, rows)))
    return 0


def _words(name: str, found: Verdict, sought: Sought) -> list[str]:
    """Return a verdict in words."""
    soft = f"p {found.soft_p_value:.2g}, corrected {found.soft_p_corrected:.2g}"
    if found.soft_null_p is not None:
        soft += f"; among the unmarked pictures {found.soft_null_p:.2g}"
    rows = [("test", f"{found.test}: p {found.p_value:.2g} for one key; {_needed(found)}")]
    if found.null_interval is not None:
        low, high = found.null_interval.low, found.null_interval.high
        rows.append(("unmarked", f"{found.null_images} pictures; 95 % bounds of the rate {low:.2g} to {high:.2g}"))
    rows += [("soft test", soft), ("prepared", found.preprocessing), ("SHA-256", found.sha256)]
    return _lines(name, found, sought, rows)


def _lines(name: str, found: Verdict | PooledVerdict, sought: Sought, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines that all verdicts have, with further rows."""
    key = sought.names[found.key] if sought.names else "given with --bits"
    count = f"{found.keys} key{'s' if found.keys > 1 else ''}"
    readings = f"{found.searches} reading{'s' if found.searches > 1 else ''}"
    every = [
        ("key", f"{key} {sought.owner}".strip() if found.keys == 1 else f"{key}, the nearest"),
        ("matches", f"{found.matches} of {found.bits}"),
        ("tried", f"{count}, {readings}; p {found.p_corrected:.2g} corrected for that, allowed {found.alpha:g}"),
        *rows,
        ("extractor", found.extractor),
    ]
    if found.verdict != "detected" and found.searches == 1:
        every.append(("perhaps", "it was made smaller, turned or put askew: --search reads other views, too"))
    return [f"{name}: {found.verdict}", f"  {found.reason}", *(f"  {label:<10} {text}" for label, text in every)]


def _needed(found: Verdict | PooledVerdict) -> str:
    if found.threshold is None:
        return f"no number of matches is enough for {found.alpha:g}"
    return f"{found.threshold} matches are needed"


def _record(found: Verdict | PooledVerdict, sought: Sought) -> dict[str, Any]:
    """Return a verdict for JSON. The bits that were read stay out: with a detected mark they are the secret key."""
    record = asdict(found)
    record.pop("read", None)
    return record | {"key": sought.names[found.key] if sought.names else None}
