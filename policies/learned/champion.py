"""The champion that ships with foreshare: a bundle in ``policies/champion``, held by the hashes below.

Nobody's key signs it: this list is part of the package, as is the code that would check a signature. Written by
``foreshare export ... --ship``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FILES, MANIFEST, NPZ, ONNX, Bundle, BundleError, open_contents

SHA256: dict[str, str] = {
    "policy.npz": "40feaa0d5fe73b49c5a44459e641920bc9e56870ad8d99141cae475382e9bab8",
    "policy.onnx": "312fb16825f6d572dbb5749288bfac95fb29c01719673b77c104575149d0952d",
    "manifest.json": "31490e12669afd19dc986b32308a3e9aceda00d6f22d35e290dc05a4aafae631",
}
"""Of each file; empty where none is shipped."""
FOLDER = Path(__file__).parents[1] / "champion"
SHIPPED = (NPZ, ONNX, MANIFEST)


def shipped() -> Bundle:
    """Return the champion that ships. Raises BundleError where none does, or its files are not those that did."""
    if not SHA256:
        raise BundleError("no champion ships with this version; name a bundle's folder, or --policy triage")
    contents = {}
    for name in SHIPPED:
        try:
            with (FOLDER / name).open("rb") as file:
                contents[name] = file.read(FILES[name] + 1)
        except OSError as e:
            raise BundleError(f"the champion's {name} cannot be read: {e.strerror}; install foreshare again") from e
        if hashlib.sha256(contents[name]).hexdigest() != SHA256.get(name):
            raise BundleError(f"the champion's {name} is not the one that shipped; install foreshare again")
    return open_contents(contents, "the package", "champion")
