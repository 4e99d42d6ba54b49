"""``foreshare keys``: the key that signs bundles, and the keys that this host trusts."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from pathlib import Path

from foreshare.policies.errors import InputError
from foreshare.runtime.keys import PRIVATE, Keys, read_public

from .main import Parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    new = what.add_parser("new", help="make a key to sign with, and trust it here")
    new.add_argument("--name", metavar="NAME", help="whose it is, for people (default: USER@HOST)")
    show = what.add_parser("show", help="print the public key, and which keys are trusted")
    trust = what.add_parser("trust", help="trust a public key on this host")
    trust.add_argument("key", metavar="KEY", help="the line that keys show prints, or a file that holds it")
    for sub in (new, show, trust):
        add_keys_option(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def add_keys_option(parser: argparse.ArgumentParser) -> None:
    """Declare where keys are."""
    parser.add_argument("--keys", type=Path, metavar="DIR", help="where keys are (default: ~/.config/foreshare/keys)")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    keys = Keys(args.keys)
    if args.what == "new":
        keys.new(args.name or f"{getpass.getuser()}@{_host_name()}")
    elif args.what == "trust":
        keys.trust(read_public(_key_text(args.key)))
    own, trusted = keys.public(), keys.trusted()
    if args.json:
        found = {"folder": str(keys.folder), "public": own.text() if own else None, "id": own.id if own else None,
                 "trusted": [{"id": k.id, "name": k.name, "key": k.text()} for k in trusted]}  # fmt: skip
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    if args.what == "new":
        sys.stdout.write(f"written: {keys.folder / PRIVATE} (keep it; hosts need only the line below)\n")
    sys.stdout.write(f"{own.text()}\n" if own else f"no key to sign with in {keys.folder}\n")
    sys.stdout.write("".join(f"trusted: {k.id} {k.name}\n" for k in trusted) or "nobody is trusted here\n")
    return 0


def _key_text(given: str) -> str:
    if " " in given:
        return given
    try:
        return Path(given).read_text(encoding="ascii")[:4096]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{given} is neither a public key nor a file that holds one") from e


def _host_name() -> str:
    import socket

    return socket.gethostname()
