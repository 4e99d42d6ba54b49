"""The champion that ships with foreshare: a bundle in ``policies/champion``, held by the hashes below.

Nobody's key signs it: this list is part of the package, as is the code that would check a signature. Written by
``foreshare export ... --ship``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FILES, MANIFEST, NPZ, ONNX, Bundle, BundleError, open_contents

SHA256: dict[str, str] = {
    "policy.npz": "6697e4f884c90ea476cfbf8dc4b7b418945dbd2cb9efd142f76e4a9362f9ebd9",
    "policy.onnx": "7f614432b8ab3ce14d0b48060c4f6eadbe92989b2831e25252395945794d3ab8",
    "manifest.json": "2abf8b2fa25adade5eed8dd06a7e616abbba85ac5db2d1725574f29b43cc07f3",
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
