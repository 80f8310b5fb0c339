"""Who may open Flower: a user and a password, given in the settings or made once and kept in a file."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import StoreUnavailable, UsageError
from registry.settings import Settings


@dataclass(frozen=True)
class Login:
    """One user of Flower; the password stays out of its repr."""

    user: str
    password: str = field(repr=False)
    #: Where a person finds the password.
    where: str

    @property
    def credentials(self) -> str:
        """As HTTP basic authentication carries them."""
        return f"{self.user}:{self.password}"

    def admits(self, authorization: str) -> bool:
        """Whether a request with this `Authorization` header may pass."""
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self.credentials.encode())


def read_login(settings: Settings) -> Login:
    """The login of the settings; without a password there, the one in the data directory, made on first use.

    Raises UsageError on what basic authentication cannot carry and on a file that others can read,
    StoreUnavailable if the file cannot be read or written.
    """
    user, password = settings.flower_user, settings.flower_password.get_secret_value()
    if ":" in user or not _is_plain(user):
        raise UsageError("V5_FLOWER_USER must be printable ASCII without a colon")
    if password:
        if not _is_plain(password):
            raise UsageError("V5_FLOWER_PASSWORD must be printable ASCII")
        return Login(user, password, "V5_FLOWER_PASSWORD")
    path = settings.data_dir.absolute() / "flower.password"
    try:
        return Login(user, _kept(path), str(path))
    except OSError as error:
        raise StoreUnavailable(
            f"the password of Flower cannot be kept in {path}: {error}; set V5_FLOWER_PASSWORD or V5_DATA_DIR"
        ) from error


def _kept(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written in full before it gets its name: of two that start at once, the second reads the first one's.
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(secrets.token_urlsafe(24) + "\n")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    if path.stat().st_mode & 0o077:
        raise UsageError(f"others can read {path}; delete it, and a new password is made")
    password = path.read_text().strip()
    if not password or not _is_plain(password):
        raise UsageError(f"{path} holds no usable password; delete it, and a new one is made")
    return password


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
