"""Puts a bundle into the package as the champion that ships, with its hashes in policies/learned/champion.py."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from foreshare.policies.errors import InputError
from foreshare.policies.learned import champion
from foreshare.policies.learned.bundle import Bundle

_LIST = re.compile(r"^SHA256: dict\[str, str\] = \{.*?\}$", re.MULTILINE | re.DOTALL)


def ship(bundle: Bundle, folder: Path | None = None, module: Path | None = None) -> list[str]:
    """Write the files of a bundle, but for its signature, and their hashes; return the paths.

    ``folder`` and ``module``: where, if not in the source tree that foreshare runs from. Raises InputError.
    """
    folder = champion.FOLDER if folder is None else folder
    module = Path(champion.__file__) if module is None else module
    # A strict editable install links to the tree.
    module = module.resolve()
    if folder == champion.FOLDER:
        folder = module.parents[1] / folder.name
    text = module.read_text(encoding="utf-8")
    if len(_LIST.findall(text)) != 1:
        raise InputError(f"{module} has no list SHA256 to write into")
    folder.mkdir(exist_ok=True)
    lines = []
    for name in champion.SHIPPED:
        (folder / name).write_bytes(bundle.contents[name])
        lines.append(f'    "{name}": "{hashlib.sha256(bundle.contents[name]).hexdigest()}",\n')
    rows = "SHA256: dict[str, str] = {\n" + "".join(lines) + "}"
    module.write_text(_LIST.sub(lambda _: rows, text), encoding="utf-8")
    return [str(folder / name) for name in champion.SHIPPED] + [str(module)]
