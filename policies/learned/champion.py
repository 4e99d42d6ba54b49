"""The champion that ships with foreshare: a bundle in ``policies/champion``, held by the hashes below.

Nobody's key signs it: this list is part of the package, as is the code that would check a signature. Written by
``foreshare export ... --ship``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FILES, MANIFEST, NPZ, ONNX, Bundle, BundleError, open_contents

SHA256: dict[str, str] = {
    "policy.npz": "df7918471bc597a1d2b019abad9aeb01d43da1a4ebf2fc6f79e2296443823379",
    "policy.onnx": "609026c245df6899a010ce3516cd4f54be61691e3030e154325a7a548e0748d2",
    "manifest.json": "778e34eea7f41fdbe9e009dcb7e97a37781f3ae746f0088c1a522e4e65b1bc6b",
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
