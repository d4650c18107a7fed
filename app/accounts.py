"""Who may use the page from elsewhere: users with hashed passwords in a private file, and a token for programs.

The file is JSON, `{"users": {"anna": "scrypt$16384$8$1$SALT$HASH"}}`, readable by its owner only. Passwords and tokens
are never written anywhere else and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app import text_auth as text
from lrdiff.errors import ConfigError
from lrdiff.files import replacing

COST, BLOCK, PARALLEL = 2**14, 8, 1
"""scrypt's n, r and p: 16 MB and about 50 ms per guess."""
MEMORY = 64 * 2**20
MINIMUM_PASSWORD, MINIMUM_TOKEN = 10, 24
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def hashed(password: str) -> str:
    """Return a salted scrypt hash (RFC 7914) with its parameters, as one word."""
    salt = secrets.token_bytes(16)
    return f"scrypt${COST}${BLOCK}${PARALLEL}${salt.hex()}${_scrypt(password, salt, COST, BLOCK, PARALLEL).hex()}"


def fits(password: str, stored: str) -> bool:
    """Tell whether a password belongs to a hash, in a time that does not depend on how much of it is right."""
    kind, cost, block, parallel, salt, digest = stored.split("$")
    made = _scrypt(password, bytes.fromhex(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(made, bytes.fromhex(digest)) and kind == "scrypt"


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=cost, r=block, p=parallel, maxmem=MEMORY, dklen=32)


NOBODY = hashed(secrets.token_hex(16))
"""What an unknown name is compared with, so that the answer takes as long as for a known one."""


@dataclass(frozen=True)
class Accounts:
    """Users and token of one page.

    Attributes:
        users: Password hash by name.
        token: SHA-256 of the token, or None.
    """

    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: bytes | None = field(default=None, repr=False)

    def knows(self, name: str, password: str) -> bool:
        """Tell whether a name and password, or no name and the token, may come in."""
        if not name:
            return self.holds(password)
        return fits(password, self.users.get(name, NOBODY))

    def holds(self, token: str) -> bool:
        """Tell whether this is the token."""
        digest = _digest(token)
        return hmac.compare_digest(digest, self.token or _digest(NOBODY)) and self.token is not None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def open_accounts(users: Path | None, token_file: Path | None) -> Accounts | None:
    """Read who may come in; None where neither file was given.

    Raises:
        ConfigError: A file is absent, malformed, empty, or can be read by other accounts of the machine.
    """
    if users is None and token_file is None:
        return None
    found = read_users(users) if users else {}
    if users and not found:
        raise ConfigError(text.NO_USERS.format(path=users))
    token = None
    if token_file is not None:
        words = _private(token_file).split()
        if len(words) != 1 or len(words[0]) < MINIMUM_TOKEN:
            raise ConfigError(text.SHORT_TOKEN.format(path=token_file, length=MINIMUM_TOKEN))
        token = _digest(words[0])
    return Accounts(found, token)


def read_users(path: Path) -> dict[str, str]:
    """Return password hashes by name. Raises `ConfigError` as `open_accounts` does."""
    try:
        users = json.loads(_private(path))["users"]
        for name, stored in users.items():
            kind, cost, block, parallel, salt, digest = stored.split("$")
            if kind != "scrypt" or not NAME.fullmatch(name):
                raise ValueError(f"user {name[:64]!r}")
            _ = int(cost), int(block), int(parallel), bytes.fromhex(salt), bytes.fromhex(digest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(text.BAD_USERS.format(path=path, reason=error)) from error
    return users


def add_user(path: Path, name: str, password: str) -> None:
    """Add a user, or give one a new password. The file is made if there is none, for its owner only.

    Raises:
        ConfigError: Name or password are unusable, or the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(text.BAD_NAME.format(name=name))
    if len(password) < MINIMUM_PASSWORD:
        raise ConfigError(text.SHORT_PASSWORD.format(length=MINIMUM_PASSWORD))
    users = read_users(path) if path.exists() else {}
    content = json.dumps({"users": users | {name: hashed(password)}}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.chmod(0o600)
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(text.CANNOT_WRITE.format(path=path, reason=error.strerror)) from error


def _private(path: Path) -> str:
    """Read a file of secrets; one that others can read keeps none."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(text.OPEN_TO_OTHERS.format(path=path))
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(text.CANNOT_READ.format(path=path, reason=error.strerror)) from error
