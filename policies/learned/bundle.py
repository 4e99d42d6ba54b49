"""A bundle: the folder in which a learned policy travels, and how one is read without trust.

============== ================================================================================================
policy.npz     what hosts execute (:mod:`.weights`)
policy.onnx    the same network for everybody else
manifest.json  the features' schema, what the network was trained on and how it did, SHA-256 of both files
manifest.sig   who vouches for the manifest: ``ed25519 KEY-ID SIGNATURE``, in base64
============== ================================================================================================

Order of belief: the folder holds these files and no others, each a regular file of bounded size, read once and through
the folder's own descriptor; the signature is over the manifest's bytes; only then is the manifest parsed, and its
hashes hold the files; only then are they parsed. Nothing in a bundle is executed, and no name in it is opened.
Who may vouch is not decided here: a :data:`Verify` is passed in (runtime/keys.py has the host's).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreshare.policies.allocators.corrected import ACTIONS, LIMIT
from foreshare.policies.errors import InputError
from foreshare.policies.features import F, G, schema_hash
from foreshare.policies.host import RESOURCES

from .network import Network
from .weights import MOST_BYTES, SchemaError

NPZ, ONNX, MANIFEST, SIGNATURE = "policy.npz", "policy.onnx", "manifest.json", "manifest.sig"
FILES = {NPZ: MOST_BYTES, ONNX: 4 * MOST_BYTES, MANIFEST: 1 << 20, SIGNATURE: 512}
"""Every file of a bundle, and the most bytes that it may have."""
FORMAT = 1

Verify = Callable[[bytes, bytes], str]
"""Takes a manifest and its signature; returns who signed. Raises BundleError where nobody trusted did."""


class BundleError(InputError):
    """A bundle is damaged, incomplete, or nobody whom this host trusts vouches for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle that was verified."""

    network: Network
    manifest: dict[str, Any]
    sha256: str
    """Of manifest.json, which holds the hashes of the rest: the identity of the bundle."""
    signer: str
    """Who vouches for it, in words."""
    contents: Mapping[str, bytes]
    """Its files as they were read."""


def actions() -> dict[str, Any]:
    """Return what a network's outputs mean; a bundle whose manifest says otherwise is refused."""
    return {"outputs": ["standing", *RESOURCES][:ACTIONS], "limit": LIMIT, "base": "triage"}


def read_bundle(folder: str | os.PathLike[str], verify: Verify) -> Bundle:
    """Read, verify and parse a bundle, in this order.

    Raises BundleError for whatever is wrong with it, SchemaError where it was made for other features.
    """
    where = os.fspath(folder)
    contents = read_files(where)
    return check_bundle(contents, verify, where)


def read_files(where: str) -> dict[str, bytes]:
    """Return the bytes of a bundle's files. Raises BundleError unless they are there, plain, small enough and alone."""
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise BundleError(f"{where} is no bundle: {e.strerror}") from e
    try:
        found = set(os.listdir(descriptor))
        if more := sorted(found - set(FILES)):
            raise BundleError(f"{where} holds {more[0][:80]!a}, which is no file of a bundle")
        if missing := sorted(set(FILES) - found):
            raise BundleError(f"{where} is no bundle: {', '.join(missing)} is missing")
        return {name: _read(descriptor, name, most, where) for name, most in FILES.items()}
    except OSError as e:
        raise BundleError(f"{where} cannot be read: {e.strerror}") from e
    finally:
        os.close(descriptor)


def _read(folder: int, name: str, most: int, where: str) -> bytes:
    # O_NONBLOCK: opening a pipe must not wait for somebody to write into it.
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as e:
        raise BundleError(f"{where}/{name} is no plain file, or may not be read: {e.strerror}") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{where}/{name} is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BundleError(f"{where}/{name} has more than {most} bytes")
    return data


def check_bundle(contents: Mapping[str, bytes], verify: Verify, where: str) -> Bundle:
    """Verify and parse the files of a bundle; see :func:`read_bundle`."""
    try:
        signer = verify(contents[MANIFEST], contents[SIGNATURE])
    except BundleError as e:
        raise BundleError(f"{where}: {e}") from e
    return open_contents(contents, signer, where)


def open_contents(contents: Mapping[str, bytes], signer: str, where: str) -> Bundle:
    """Check the files of a bundle against its manifest, which somebody vouches for, and parse them."""
    manifest = _manifest(contents[MANIFEST], where)
    listed = manifest.get("files")
    if not isinstance(listed, dict) or set(listed) != {NPZ, ONNX}:
        raise BundleError(f"{where}/{MANIFEST}: files has to list {NPZ} and {ONNX}, and nothing else")
    for name, row in listed.items():
        expected = row.get("sha256") if isinstance(row, dict) else None
        if expected != hashlib.sha256(contents[name]).hexdigest():
            raise BundleError(f"{where}/{name} is not the file that its manifest describes")
    if manifest.get("schema") != schema_hash():
        raise SchemaError(where, f"{str(manifest.get('schema'))[:32]!a}".strip("'"))
    if manifest.get("actions") != actions():
        raise BundleError(f"{where} was made for other actions than this version has")
    network = Network.load(contents[NPZ])
    return Bundle(network, manifest, hashlib.sha256(contents[MANIFEST]).hexdigest(), signer, contents)


def _manifest(data: bytes, where: str) -> dict[str, Any]:
    try:
        manifest: Any = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{where}/{MANIFEST} is not JSON") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("kind") != "policy":
        raise BundleError(f"{where}/{MANIFEST} describes no policy in format {FORMAT}")
    return manifest


def integrity_only(manifest: bytes, signature: bytes) -> str:
    """Vouch for nobody: for judging a policy, which harms no host. See :data:`Verify`."""
    return "nobody asked"


def manifest_text(network: Network, onnx: bytes, facts: Mapping[str, Any]) -> bytes:
    """Return manifest.json of a network: what loading checks, and ``facts`` about where it comes from."""
    files = {NPZ: network.packed(), ONNX: onnx}
    document = {
        **facts,
        "format": FORMAT, "kind": "policy", "schema": schema_hash(), "features": {"vm": F, "host": G},
        "actions": actions(), "widths": network.widths._asdict(),
        "files": {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in files.items()},
    }  # fmt: skip
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    if len(text) > FILES[MANIFEST]:
        raise InputError(f"a manifest of {len(text)} bytes is too long: at most {FILES[MANIFEST]}")
    return text


def is_bundle(folder: Path) -> bool:
    """Return whether ``folder`` holds nothing but files of a bundle, and a manifest among them."""
    try:
        names = {p.name for p in folder.iterdir()}
    except OSError:
        return False
    return MANIFEST in names and names <= set(FILES)
