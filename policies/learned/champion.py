"""The champion that ships with foreshare: a bundle in ``policies/champion``, held by the hashes below.

Nobody's key signs it: this list is part of the package, as is the code that would check a signature. Written by
``foreshare export ... --ship``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FILES, MANIFEST, NPZ, ONNX, Bundle, BundleError, open_contents

SHA256: dict[str, str] = {
    "policy.npz": "762fe029bc5d9b45b092733ec4d3a74b2d1501ca14697af5605e79cfc55c53e2",
    "policy.onnx": "9a24f82db00144aacd4ca6490374f77d72093242eefcc1b1d6baac9df72df3ed",
    "manifest.json": "467f3694082a734b0dec45096dba8c967ff3ebaa533f364d9ef63d7d8623e513",
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
