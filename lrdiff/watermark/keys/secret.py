"""The key file: one secret, from which the encryption of the bits and the signature of the history are derived."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lrdiff.watermark.keys.key import RegistryError

HEAD = "lrdiff key file 1"
NOTE = "# Opens the watermark keys of a registry. Keep it secret, and keep a copy apart from the registry's backups."
NONCE = 12

log = logging.getLogger(__name__)


class Secret:
    """What the key file holds, ready for use.

    Bits are sealed with AES-256-GCM, bound to the id of their key so that sealed bits cannot change places. The history
    is signed with Ed25519. Both keys and the fingerprint come from the one secret through HKDF-SHA256.

    Attributes:
        path: The key file.
        fingerprint: Tells two key files apart without giving anything away.
    """

    def __init__(self, master: bytes, path: Path) -> None:
        """Derive the keys from 32 secret bytes."""
        self.path = path
        self.fingerprint = _derive(master, "fingerprint")[:8].hex()
        self._cipher = AESGCM(_derive(master, "bits"))
        self._signer = Ed25519PrivateKey.from_private_bytes(_derive(master, "history"))
        self._public = self._signer.public_key()

    def seal(self, bits: str, key_id: str) -> bytes:
        """Return encrypted bits: a fresh nonce, then the ciphertext with its tag."""
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._cipher.encrypt(nonce, bits.encode("ascii"), key_id.encode())

    def unseal(self, sealed: bytes, key_id: str) -> bytes:
        """Return the bits of a key as ASCII.

        Raises:
            RegistryError: The sealed bits were changed, or belong to another key or another key file.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], key_id.encode())
        except (InvalidTag, ValueError) as error:
            raise RegistryError(
                f"key {key_id}: its bits cannot be decrypted, so its row is damaged or was changed; restore a backup"
            ) from error

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature of `data`."""
        return self._signer.sign(data)

    def signed(self, signature: bytes, data: bytes) -> bool:
        """Tell whether `signature` was made with this key file."""
        try:
            self._public.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def load_secret(path: Path) -> Secret:
    """Read a key file.

    Raises:
        RegistryError: It is absent, unreadable or no key file.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError as error:
        raise RegistryError(
            f"{path}: the key file is not there; put your copy of it back, or say where it is with --key-file. "
            "Without it the bits in the registry cannot be read by anybody"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path}: the key file cannot be read ({error}); put your copy of it back") from error
    if mode & 0o077:
        log.warning("%s: other users can read or change the key file; run: chmod 600 %s", path, path)
    words = [line for line in lines if line and not line.startswith("#")]
    try:
        head, text = words
        master = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _damaged(path) from error
    if head != HEAD or len(master) != 32:
        raise _damaged(path)
    return Secret(master, path)


def make_secret(path: Path) -> Secret:
    """Read a key file, or draw a new one with mode 0600 where there is none. An existing file is never replaced.

    Raises:
        RegistryError: It cannot be written, or what is there is no key file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The complete file appears under its name in one step, or another process's file is already there.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{HEAD}\n{NOTE}\n{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                log.info("new key file: %s. Keep a copy in a safe place: without it the registered bits are lost", path)
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise RegistryError(f"{path}: no key file can be made here ({error}); choose another --key-file") from error
    return load_secret(path)


def _derive(master: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"lrdiff registry {purpose}".encode()).derive(master)


def _damaged(path: Path) -> RegistryError:
    return RegistryError(f"{path}: is damaged or no lrdiff key file; put your copy of it back, or name another one")
