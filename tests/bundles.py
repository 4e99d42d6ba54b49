"""Keys and signed bundles for tests, made without torch or ONNX: the ONNX file is a stand-in where nobody runs it."""

from __future__ import annotations

from pathlib import Path

from foreshare.policies.learned import Network
from foreshare.policies.learned.bundle import MANIFEST, NPZ, ONNX, SIGNATURE, manifest_text
from foreshare.runtime.keys import Keys

STAND_IN = b"no model, only bytes"


def make_keys(folder: Path) -> Keys:
    keys = Keys(folder)
    keys.new("tester")
    return keys


def bundle_files(network: Network, keys: Keys, model: bytes = STAND_IN, **facts: object) -> dict[str, bytes]:
    manifest = manifest_text(network, model, facts)
    return {NPZ: network.packed(), ONNX: model, MANIFEST: manifest, SIGNATURE: keys.sign(manifest)}


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
