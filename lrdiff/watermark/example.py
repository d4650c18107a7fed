"""The example mark: its key is public, so anybody can see how marking and verifying work before training one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lrdiff.adapters import read_adapter
from lrdiff.assets import ASSETS
from lrdiff.errors import ArtifactError, ConfigError, ModelError
from lrdiff.generate_config import AdapterSpec
from lrdiff.watermark.keys import Key, Registry
from lrdiff.watermark.publish import check_mark, publish

FOLDER = ASSETS / "mark"
ADAPTER, BITS = "adapter.safetensors", "bits.txt"
OWNER = "the example: everybody knows this key"


@dataclass(frozen=True, slots=True)
class Example:
    """The example, ready for use.

    Attributes:
        key: As it stands in the registry.
        decoder: Folder of the decoder that writes it.
    """

    key: Key
    decoder: Path


def install(registry: Registry, extractor_sha256: str, decoders: Path, folder: Path = FOLDER) -> Example:
    """Register the example's key and write its decoder; what is there already stays as it is.

    Args:
        registry: Where verification looks for keys.
        extractor_sha256: Content hash of the extractor that will read pictures.
        decoders: Folder in which the decoder gets one of its own, named by the key's id.
        folder: Of the shipped files.

    Raises:
        ArtifactError: The shipped files are absent or damaged.
        ModelError: They were made for another extractor, or `toys` cannot be used.
        ConfigError: The example's key was revoked here.
        RegistryError: The registry cannot be read or written.
    """
    adapter = read_adapter(AdapterSpec(folder / ADAPTER, 1.0))
    check_mark(adapter)
    header = adapter.artifact.header
    if header.extra["extractor"] != extractor_sha256:
        raise ModelError(
            f"{adapter.file}: made for extractor {header.extra['extractor'][:12]}, and {extractor_sha256[:12]} is "
            "installed; make it again: lrdiff embedded make mark"
        )
    key = _registered(registry, extractor_sha256, _bits(folder / BITS))
    decoder = decoders / key.id
    if not decoder.is_dir():
        named = replace(adapter.artifact, header=replace(header, extra={**header.extra, "key": key.id}))
        made = publish(replace(adapter, artifact=named), decoder).header
        key = registry.attach(key.id, decoder_sha256=made.base_fingerprint, adapter_sha256=made.adapter)
    return Example(key, decoder)


def _registered(registry: Registry, extractor_sha256: str, bits: str) -> Key:
    """Return the key with these bits, made now where there is none."""
    known = [key for key in registry.all() if key.bits == bits and key.extractor_sha256 == extractor_sha256]
    if not known:
        return registry.create(owner=OWNER, extractor_sha256=extractor_sha256, bits=bits)
    if known[0].revoked is not None:
        raise ConfigError(
            f"the example's key {known[0].id} was revoked here ({known[0].reason}); make a key of your own"
        )
    return known[0]


def _bits(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); copy it again") from error
