"""`lrdiff watermark keys`: make, list, revoke and keep the keys of marks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.console import command, logging_to_stderr, say
from app.commands.flags import Options, read_flags
from app.commands.settings import build
from lrdiff.errors import ConfigError

if TYPE_CHECKING:
    from lrdiff.watermark.keys import Key, Registry

PROG = "lrdiff watermark keys"
USAGE = """usage: lrdiff watermark keys new --owner NAME           draw a key; its id goes to stdout
       lrdiff watermark keys list [--json]             all keys, without their bits
       lrdiff watermark keys show ID [--with-bits]     one key
       lrdiff watermark keys revoke ID --reason TEXT   let it count no more
       lrdiff watermark keys history [--head HASH]     check the signed history and print it
       lrdiff watermark keys backup FILE               write all of it to one file; the bits stay encrypted
       lrdiff watermark keys restore FILE              make the registry again; nothing is written over

The registry is an SQLite file in your data folder, or --registry PLACE. The bits in it open only with a key file, which
is made with the first key. Keep a copy of that file, apart from the registry's backups: without it the bits are lost.
"""


class PlaceOptions(Options):
    """Where the keys are."""

    registry: str = ""
    """A file or postgresql://USER@HOST/NAME. Without it $LRDIFF_REGISTRY, else the user's own."""

    key_file: Path | None = None
    """Secret file that opens the bits. Without it $LRDIFF_KEY_FILE, else the user's own."""


class NewOptions(PlaceOptions):
    """What key to make."""

    owner: str = ""
    """Whose key it is: a person, a team, a model. Required."""

    extractor: Path | None = None
    """File of the extractor that will read the key; none takes the shipped one. It decides the number of bits."""

    trust_extractor_code: bool = False
    """The extractor is a TorchScript file (.pt): its code may run with your rights."""

    bits: str = ""
    """Register these bits instead of drawing them. The error rates of verification assume bits drawn at random."""


class ListOptions(PlaceOptions):
    """How to print."""

    json_: bool = False
    """Print as JSON."""


class ShowOptions(ListOptions):
    """What to print."""

    with_bits: bool = False
    """Print the secret bits too."""


class RevokeOptions(PlaceOptions):
    """Why to revoke."""

    reason: str = ""
    """One line that verification will show. Required."""


class HistoryOptions(ListOptions):
    """What to check."""

    head: str = ""
    """Hash of an entry that you noted earlier: it must still be there. Shows that nothing was cut off since."""


def main(arguments: list[str]) -> int:
    """Run `lrdiff watermark keys`."""
    actions = {
        "new": new,
        "list": list_keys,
        "show": show,
        "revoke": revoke,
        "history": history,
        "backup": backup,
        "restore": restore,
    }
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not arguments or arguments[0] not in actions:
        raise ConfigError(f"{PROG} what? {', '.join(actions)}; see {PROG} --help")
    with logging_to_stderr():
        return actions[arguments[0]](arguments[1:])


def new(arguments: list[str]) -> int:
    """Register a key."""
    options, _ = _read(arguments, NewOptions, "new", "Draw a key and register it.", "")
    if not options.owner:
        raise ConfigError(f"whose key? Write {PROG} new --owner NAME")
    from lrdiff.watermark.keys import open_registry
    from lrdiff.watermark.verifier import open_extractor

    network = open_extractor(options.extractor, consent=options.trust_extractor_code)
    if options.bits and len(options.bits) != network.bits:
        raise ConfigError(f"--bits: {len(options.bits)} characters, and this extractor reads {network.bits} bits")
    registry = open_registry(options.registry or None, options.key_file)
    key = registry.create(
        owner=options.owner,
        bits=options.bits or None,
        length=network.bits,
        extractor_sha256=network.sha256(),
    )
    say(f"registered in {registry.name}")
    say(f"to put it into a decoder: {command('lrdiff', 'train', 'watermark', '--help')}")
    print(key.id)
    return 0


def list_keys(arguments: list[str]) -> int:
    """Print a line for every key."""
    options, _ = _read(arguments, ListOptions, "list", "List the keys of a registry, without their bits.", "")
    registry = _open(options)
    found = registry.all()
    if options.json_:
        print(json.dumps([_record(key) for key in found], indent=2, ensure_ascii=False))
        return 0
    rows = [(k.id, k.owner, f"{len(k.bits)} bits", k.created[:16].replace("T", " "), _state(k)) for k in found]
    for row in rows:
        print("  ".join(f"{text:<{max(len(r[i]) for r in rows)}}" for i, text in enumerate(row)).rstrip())
    say(f"{len(found)} keys in {registry.name}")
    return 0


def show(arguments: list[str]) -> int:
    """Print one key."""
    options, words = _read(arguments, ShowOptions, "show", "Show one key.", "ID")
    key = _open(options).get(words[0])
    record = _record(key) | ({"bits": key.bits} if options.with_bits else {})
    if options.json_:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return 0
    for name, value in record.items():
        if value is not None:
            print(f"{name.replace('_', ' '):<17} {value}")
    return 0


def revoke(arguments: list[str]) -> int:
    """Revoke a key."""
    options, words = _read(arguments, RevokeOptions, "revoke", "Let a key count no more, for good.", "ID")
    if not options.reason:
        raise ConfigError(f"why? Write {PROG} revoke {words[0]} --reason TEXT; verification shows it")
    key = _open(options).revoke(words[0], options.reason)
    print(f"{key.id}: {_state(key)}. Pictures with it are no longer called detected")
    return 0


def history(arguments: list[str]) -> int:
    """Check and print the history."""
    about = "Check every entry's place and signature, and that the keys are what the entries say; then print them."
    options, _ = _read(arguments, HistoryOptions, "history", about, "")
    registry = _open(options)
    entries = registry.verify_history(options.head or None)
    if options.json_:
        print(json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False))
    else:
        for entry in entries:
            details = ", ".join(f"{name} {value}" for name, value in entry.details.items())
            print(f"{entry.number:>5}  {entry.at}  {entry.action:<10}  {entry.key or '':<10}  {details}".rstrip())
    say(f"{len(entries)} entries, all as they were signed. Note the newest hash to see later that none was cut off:")
    say(entries[-1].hash)
    return 0


def backup(arguments: list[str]) -> int:
    """Write a backup."""
    options, words = _read(arguments, PlaceOptions, "backup", "Write a registry to one new file.", "FILE")
    from lrdiff.watermark.keys import backup as write

    registry = _open(options)
    count = write(registry, Path(words[0]).expanduser())
    print(f"{words[0]}: {count} keys and their history")
    say(f"the key file {registry.key_file} is not in it; keep a copy of that too, in another place")
    return 0


def restore(arguments: list[str]) -> int:
    """Restore a backup."""
    about = "Make a registry from a backup, where there is none yet. Nothing is written over."
    options, words = _read(arguments, PlaceOptions, "restore", about, "FILE")
    from lrdiff.watermark.keys import restore as read

    registry = read(Path(words[0]).expanduser(), options.registry or None, options.key_file)
    print(f"{registry.name}: {len(registry.all())} keys restored")
    return 0


def _read(arguments: list[str], model: type[Any], action: str, about: str, word: str) -> tuple[Any, tuple[str, ...]]:
    """Read flags, and as many words as the action takes: one where `word` names it, else none."""
    given = read_flags(arguments, [model], prog=f"{PROG} {action} {word}".rstrip(), about=about)
    if len(given.words) != (1 if word else 0):
        takes = f"one {word}" if word else "no word"
        raise ConfigError(f"{PROG} {action} takes {takes}, not {len(given.words)}; see {PROG} {action} --help")
    return build(model, given.values), given.words


def _open(options: PlaceOptions) -> Registry:
    from lrdiff.watermark.keys import open_registry

    return open_registry(options.registry or None, options.key_file, create=False)


def _state(key: Key) -> str:
    return f"revoked {key.revoked[:10]}: {key.reason}" if key.revoked else "counts"


def _record(key: Key) -> dict[str, Any]:
    """Return a key without its bits."""
    record = asdict(key)
    return {"id": record.pop("id"), "owner": record.pop("owner"), "length": len(record.pop("bits")), **record}
