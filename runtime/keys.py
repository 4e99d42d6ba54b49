"""Who may vouch for a bundle: a key to sign with, and the keys that this host trusts (Ed25519, RFC 8032).

A folder, by default ``~/.config/foreshare/keys`` ($XDG_CONFIG_HOME), or what FORESHARE_KEYS says::

    private.pem       PKCS 8, mode 0600; only where bundles are signed
    trusted/ID.pub    one line each: ``ed25519 BASE64 NAME``

An ID is the beginning of the SHA-256 of the key. A private key that others can read is not used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreshare.policies.errors import InputError
from foreshare.policies.learned.bundle import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "FORESHARE_KEYS"
KIND = "ed25519"
PRIVATE, TRUSTED, ENDING = "private.pem", "trusted", ".pub"
_CONTEXT = b"foreshare bundle manifest 1\n"
"""Signed in front of every manifest: a signature over something else is none over a manifest."""
_MOST_BYTES = 4096
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may vouch."""

    raw: bytes
    name: str

    @property
    def id(self) -> str:
        """What signatures call it: 16 hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def text(self) -> str:
        """Return the line that ``foreshare keys trust`` takes."""
        return f"{KIND} {base64.b64encode(self.raw).decode()} {self.name}".strip()


def default_folder() -> Path:
    """Return where keys are kept, unless the command line says otherwise."""
    if told := os.environ.get(VARIABLE, ""):
        return Path(told)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "foreshare" / "keys"


def read_public(text: str) -> PublicKey:
    """Return the key in a line. Raises InputError where it is none."""
    kind, _, rest = text.strip().partition(" ")
    key, _, name = rest.strip().partition(" ")
    raw = _decoded(key, _KEY_BYTES)
    if kind != KIND or raw is None or "\n" in name or not name.isprintable():
        raise InputError(f"{text.strip()[:60]!a} is no public key: one line, {KIND} BASE64 NAME")
    return PublicKey(raw, name.strip()[:64])


def _decoded(text: str, size: int) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == size else None


class Keys:
    """The keys in a folder, which need not exist until something is kept there."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    # -- trust

    def trusted(self) -> list[PublicKey]:
        """Return the keys that are trusted. Raises InputError for a file among them that is no key."""
        folder = self.folder / TRUSTED
        if not folder.is_dir():
            return []
        out = []
        for path in sorted(folder.glob(f"*{ENDING}")):
            with path.open(encoding="ascii", errors="replace") as file:
                try:
                    out.append(read_public(file.read(_MOST_BYTES)))
                except InputError as e:
                    raise InputError(f"{path}: {e}") from e
        return out

    def trust(self, key: PublicKey) -> Path:
        """Trust ``key`` from now on; return the file that says so."""
        path = self.folder / TRUSTED / f"{key.id}{ENDING}"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _write(path, key.text().encode() + b"\n", 0o644)
        return path

    def verify(self, manifest: bytes, signature: bytes) -> str:
        """Return who signed ``manifest``: a :data:`~foreshare.policies.learned.bundle.Verify`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        words = signature.decode("ascii", "replace").split()
        raw = _decoded(words[2], _SIGNATURE_BYTES) if len(words) == 3 and words[0] == KIND else None
        if raw is None:
            raise BundleError("the signature is none: it has to be one line, ed25519 KEY-ID BASE64")
        for key in self.trusted():
            if key.id != words[1]:
                continue
            try:
                Ed25519PublicKey.from_public_bytes(key.raw).verify(raw, _CONTEXT + manifest)
            except (InvalidSignature, ValueError) as e:
                raise BundleError(f"the signature of {key.id} is not over this manifest: it was changed") from e
            return f"{key.id} {key.name}".strip()
        raise BundleError(
            f"signed by {words[1][:32]!a}, whom nobody trusts here: foreshare keys trust KEY (keys in {self.folder})"
        )

    # -- the private key

    def new(self, name: str) -> PublicKey:
        """Make a key to sign with, trust it, and return its public half. Raises InputError where there is one."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        path = self.folder / PRIVATE
        if path.exists():
            raise InputError(f"{path} is there already; it is never overwritten")
        private = Ed25519PrivateKey.generate()
        public = read_public(PublicKey(private.public_key().public_bytes_raw(), name).text())
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError as e:
            raise InputError(f"{path} is there already; it is never overwritten") from e
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(pem)
        self.trust(public)
        return public

    def public(self) -> PublicKey | None:
        """Return the public half of the key to sign with; None where there is none."""
        if not (self.folder / PRIVATE).exists():
            return None
        raw = self._private().public_key().public_bytes_raw()
        return next((k for k in self.trusted() if k.raw == raw), PublicKey(raw, ""))

    def sign(self, manifest: bytes) -> bytes:
        """Return manifest.sig. Raises InputError where there is no key to sign with, or others can read it."""
        private = self._private()
        key = PublicKey(private.public_key().public_bytes_raw(), "")
        signature = base64.b64encode(private.sign(_CONTEXT + manifest)).decode()
        return f"{KIND} {key.id} {signature}\n".encode()

    def _private(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        path = self.folder / PRIVATE
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise InputError(f"there is no key to sign with in {self.folder}: foreshare keys new") from e
        except OSError as e:
            raise InputError(f"{path}: {e.strerror}") from e
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise InputError(f"{path} can be read by others; chmod 600 it, and think about who did")
            pem = file.read(_MOST_BYTES)
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as e:
            raise InputError(f"{path} holds no private key that can be read") from e
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path} holds a key of another kind than {KIND}")
        return key


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)
