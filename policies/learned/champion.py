"""The champion that ships with foreshare: a bundle in ``policies/champion``, held by the hashes below.

Nobody's key signs it: this list is part of the package, as is the code that would check a signature. Written by
``foreshare export ... --ship``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FILES, MANIFEST, NPZ, ONNX, Bundle, BundleError, open_contents

SHA256: dict[str, str] = {
    "policy.npz": "44c3cecceb49d8f77a2ff69343458bd009123ff02cc30e4224a030f74954d78e",
    "policy.onnx": "688927bf8510d61c8ebca80024f77ac9c55f948099feaa29c7669e152a112dc2",
    "manifest.json": "3ba8d0276df90f534306609436c49e79897595d7ae63f2c5c603f8479963cf32",
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
