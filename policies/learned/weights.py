"""The arrays of a network, and the one file that holds them: an uncompressed npz, read without trust.

F features of a VM, G of its host, A = ACTIONS outputs a VM; E, C and D are the widths of encoder, context and head:

====================================  =================================================
vm_mean, vm_scale (F,)                what is taken from a VM's features, then times what
host_mean, host_scale (G,)            the same of the host's
enc_w (F, E), enc_b (E,)              the encoder of a VM
ctx_w (2E + G, C), ctx_b (C,)         the context of a host: mean and maximum of its VMs' codes, then its features
head_w (E + C, D), head_b (D,)        the head, on a VM's code and its host's context
out_w (D, A), out_b (A,), lin_w (F, A)  the outputs, of the head and straight from the features
====================================  =================================================

A file has these arrays as little-endian float32 and ``schema``, the features' :func:`~..features.schema_hash` as bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.errors import InputError
from foreshare.policies.features import F, G, schema_hash

Float32Array = npt.NDArray[np.float32]
Arrays = dict[str, Float32Array]
SCHEMA = "schema"
MOST_BYTES = 1 << 22
"""A file of a network is no longer than this: 4 MiB."""
MOST_WIDTH = 1024
"""Of E, C and D."""
_LITTLE = np.dtype("<f4")


class SchemaError(InputError):
    """A network, or a bundle, was made for other features than this version has: ``found``, not ``wanted``."""

    def __init__(self, what: str, found: str) -> None:
        self.found, self.wanted = found, schema_hash()
        super().__init__(f"{what} was made for the features {found}, and this version has {self.wanted}")


class Widths(NamedTuple):
    """How wide the hidden layers are; 0 takes a layer away. All zeros is a linear policy."""

    encoder: int = 32
    context: int = 32
    head: int = 32


def shapes(widths: Widths) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array, in the order of the file."""
    e, c, d = widths
    return {
        "vm_mean": (F,), "vm_scale": (F,), "host_mean": (G,), "host_scale": (G,),
        "enc_w": (F, e), "enc_b": (e,), "ctx_w": (2 * e + G, c), "ctx_b": (c,), "head_w": (e + c, d), "head_b": (d,),
        "out_w": (d, ACTIONS), "out_b": (ACTIONS,), "lin_w": (F, ACTIONS),
    }  # fmt: skip


NAMES = tuple(shapes(Widths()))
NORMALISATION = NAMES[:4]
"""Those that are measured, not trained."""


def checked(arrays: Mapping[str, npt.NDArray[Any]], what: str) -> tuple[Arrays, Widths]:
    """Return own copies of the arrays, not to be written to, and their widths.

    Raises InputError, which names ``what`` they are, where one is missing, too many, not finite or does not fit.
    """
    if set(arrays) != set(NAMES):
        wrong = ", ".join(sorted(set(arrays) ^ set(NAMES)))
        raise InputError(f"{what} does not hold the arrays of a network: {wrong}")
    widths = Widths(*(arrays[name].shape[0] if arrays[name].ndim == 1 else -1 for name in ("enc_b", "ctx_b", "head_b")))
    if not all(0 <= w <= MOST_WIDTH for w in widths):
        raise InputError(f"{what}: the layers of a network are vectors of at most {MOST_WIDTH}, not {tuple(widths)}")
    out: Arrays = {}
    for name, shape in shapes(widths).items():
        array = arrays[name]
        if array.shape != shape:
            raise InputError(f"{what}: {name} is {array.shape}, and has to be {shape}")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(f"{what}: {name} does not hold finite numbers")
        with np.errstate(over="ignore"):
            out[name] = np.array(array, np.float32, order="C")
        if not np.isfinite(out[name]).all():
            raise InputError(f"{what}: {name} does not fit into float32")
        out[name].setflags(write=False)
    return out, widths


def packed(arrays: Arrays) -> bytes:
    """Return the file of a network. The same arrays give the same bytes."""
    file = io.BytesIO()
    schema = np.frombuffer(schema_hash().encode(), np.uint8)
    np.savez(file, allow_pickle=False, **{n: arrays[n].astype(_LITTLE) for n in NAMES}, **{SCHEMA: schema})
    return file.getvalue()


def unpacked(data: bytes, what: str) -> Arrays:
    """Return the arrays in a file of a network; nothing is unpickled, and no size that it claims is believed.

    Raises InputError where it is no such file, SchemaError where it was made for other features.
    """
    if len(data) > MOST_BYTES:
        raise InputError(f"{what} is too long for a network: {len(data)} bytes, at most {MOST_BYTES}")
    members = _members(data, what)
    schema = bytes(_array(members.pop(SCHEMA, b""), f"{what}: {SCHEMA}", np.dtype(np.uint8))).decode("ascii", "replace")
    if schema != schema_hash():
        raise SchemaError(what, ascii(schema[:32])[1:-1])
    return {name: _array(raw, f"{what}: {name}", _LITTLE).astype(np.float32) for name, raw in members.items()}


def _members(data: bytes, what: str) -> dict[str, bytes]:
    """Return what the members of an uncompressed npz hold, by name."""
    out: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            for info in file.infolist():
                name, _, ending = info.filename.rpartition(".")
                if name not in (*NAMES, SCHEMA) or ending != "npy" or name in out:
                    raise InputError(f"{what} has a member {info.filename[:80]!a} that no network has")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                    raise InputError(f"{what} is compressed, which the files of networks are not")
                out[name] = file.read(info)
    # What zipfile raises for a damaged file is not one kind of error.
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError, RuntimeError, struct.error) as e:
        raise InputError(f"{what} is no file of a network, or damaged ({e})") from e
    return out


def _array(raw: bytes, what: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the array of an npy member, whose header says no more than its length bears out."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as e:
        raise InputError(f"{what} is no array, or damaged") from e
    if found != dtype or fortran:
        raise InputError(f"{what} is an array of {found}, and has to be one of {dtype}")
    size = 1
    for length in shape:  # Python's integers: no product overflows
        size *= length
    if any(length < 0 for length in shape) or size * dtype.itemsize != len(raw) - stream.tell():
        raise InputError(f"{what} claims the shape {shape}, which is not what the file holds")
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape)
