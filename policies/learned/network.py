"""The learned policy's network, in numpy: the same weights for every VM of any host.

With ``x = (raw - mean) * scale`` of a VM's features and ``g`` likewise of the host's::

    h = tanh(x @ enc_w + enc_b)                                        for each VM
    c = tanh([mean over VMs of h, maximum over VMs of h, g] @ ctx_w + ctx_b)       for each host
    z = tanh([h, c] @ head_w + head_b)
    action = tanh(z @ out_w + out_b + x @ lin_w)                       (N, A) in [-1, 1]

VMs under a mask of 0 are in no mean and no maximum, and get 0; where there is no VM, mean and maximum are 0. This is
the form of the sets of Zaheer et al. 2017 (Deep Sets, NeurIPS): VMs in another order get the same in that order.

The compiled form (compiled/network.c) works out a VM in one order whoever stands beside it, so that padding changes
nothing to the bit; the numpy form is the reference, and what runs where nothing was compiled.

training/network_torch.py is the same network to be trained; that both agree is tested, and a gate of every export.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies import kernel
from foreshare.policies.errors import InputError
from foreshare.policies.host import IntArray

from .weights import MOST_BYTES, NORMALISATION, Arrays, Float32Array, Widths, checked, packed, shapes, unpacked

BLOCK = 8
"""The compiled form goes over so many outputs at once: rows of weights are padded to a multiple of it."""
ONE_CORE = 1 << 18
"""OpenBLAS spreads products of more multiplications than this over threads, and waits for them in a loop."""


class Network:
    """See the module. Keeps buffers for the shape that it saw last, and nothing else from call to call."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], what: str = "a network") -> None:
        """``arrays``: those of :mod:`.weights` by name, copied. Raises InputError where they do not fit together."""
        self.arrays, self.widths = checked(arrays, what)
        """The arrays, not to be written to."""
        a, e = self.arrays, self.widths.encoder
        self._pooled_w, self._whole_w = a["ctx_w"][: 2 * e], a["ctx_w"][2 * e :]
        self._code_w, self._context_w = a["head_w"][:e], a["head_w"][e:]
        self._shape: tuple[int, ...] | None = None
        self._packed = _packed(a)
        self._sizes: IntArray = np.array(
            [len(a["vm_mean"]), len(a["host_mean"]), *self.widths, len(a["out_b"])], np.int64
        )

    @classmethod
    def random(cls, seed: int, widths: Widths | None = None, *, gain: float = 1.0) -> Network:
        """Return a network to begin from: weights of variance 1 / inputs, those of the outputs times ``gain``.

        With ``gain`` 0 it corrects nothing, which is triage.
        """
        rng = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name, shape in shapes(widths or Widths()).items():
            if name.endswith("_scale"):
                arrays[name] = np.ones(shape, np.float32)
            elif name.endswith("_w"):
                drawn = rng.standard_normal(shape) / np.sqrt(max(shape[0], 1))
                arrays[name] = (drawn * (gain if name in ("out_w", "lin_w") else 1.0)).astype(np.float32)
            else:
                arrays[name] = np.zeros(shape, np.float32)
        return cls(arrays)

    @classmethod
    def load(cls, source: bytes | str | os.PathLike[str]) -> Network:
        """Return the network in a file, or in the bytes of one.

        Raises InputError where it is no file of a network or holds what none can; SchemaError for other features.
        """
        if isinstance(source, bytes):
            data, what = source, "the network"
        else:
            what = os.fspath(source)
            try:
                with Path(source).open("rb") as file:
                    data = file.read(MOST_BYTES + 1)
            except OSError as e:
                raise InputError(f"{what}: {e.strerror}") from e
        return cls(unpacked(data, what), what)

    def packed(self) -> bytes:
        """Return the file of this network; the same weights give the same bytes."""
        return packed(self.arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file of this network."""
        Path(path).write_bytes(self.packed())

    def with_normalisation(self, **arrays: npt.NDArray[Any]) -> Network:
        """Return this network with other vm_mean, vm_scale, host_mean or host_scale. Raises InputError for others."""
        if not set(arrays) <= set(NORMALISATION):
            raise InputError(f"{', '.join(sorted(set(arrays) - set(NORMALISATION)))} are no part of the normalisation")
        return Network({**self.arrays, **arrays})

    @property
    def compiled_form(self) -> tuple[IntArray, Float32Array]:
        """Its widths and weights as compiled/network.c reads them."""
        return self._sizes, self._packed

    def forward(
        self, vms: npt.NDArray[np.floating], mask: npt.NDArray[Any], host: npt.NDArray[np.floating]
    ) -> Float32Array:
        """Return actions (..., N, A), fresh. ``vms``: (..., N, F); ``mask``: (..., N) 0 or 1; ``host``: (..., G).

        A host's actions are the same to the bit whatever hosts stand beside it in a batch.
        """
        batch, n = vms.shape[:-2], vms.shape[-2]
        if kernel.compiled is not None:
            out = np.empty((*batch, n, self._sizes[-1]), np.float32)
            there = np.ascontiguousarray(mask if mask.dtype == np.bool_ else mask > 0)
            seen = np.ascontiguousarray(vms, np.float32), there, np.ascontiguousarray(host, np.float32)
            kernel.compiled.network(self._sizes, math.prod(batch), n, self._packed, *seen, out)
            return out
        if self._shape != vms.shape:
            self._bind(vms.shape)
        a, (e, c, d) = self.arrays, self.widths
        x = self._x
        np.subtract(vms, a["vm_mean"], out=x)
        x *= a["vm_scale"]
        there = np.asarray(mask) > 0
        action = np.empty((*batch, n, len(a["out_b"])), np.float32)
        self._multiply(x, a["lin_w"], action)
        action += a["out_b"]
        if e:
            self._multiply(x, a["enc_w"], self._h)
            self._h += a["enc_b"]
            np.tanh(self._h, out=self._h)
        if c:
            self._see(there, host)
        if d:
            z = self._z
            if e:
                self._multiply(self._h, self._code_w, z)
            else:
                z[:] = 0.0
            z += np.matmul(self._c[..., None, :], self._context_w) + a["head_b"]
            np.tanh(z, out=z)
            self._multiply(z, a["out_w"], self._more)
            action += self._more
        np.tanh(action, out=action)
        if not there.all():
            action[~there] = 0.0
        return action

    def _see(self, there: npt.NDArray[np.bool_], host: npt.NDArray[np.floating]) -> None:
        """Fill ``c`` from the codes of the VMs that are there and what is seen of their host."""
        a, c, e = self.arrays, self._c, self.widths.encoder
        g = (np.asarray(host, np.float32) - a["host_mean"]) * a["host_scale"]
        np.matmul(g[..., None, :], self._whole_w, out=c[..., None, :])
        if e and there.shape[-1]:
            pooled, count = self._pooled, there.sum(axis=-1, dtype=np.float32)[..., None]
            codes = self._h
            if not there.all():
                codes = np.where(there[..., None], codes, np.float32(0.0))
            np.divide(codes.sum(axis=-2), np.maximum(count, 1.0), out=pooled[..., :e])
            if codes is not self._h:
                codes = np.where(there[..., None], codes, np.float32(-1.0))  # no code is less
            np.max(codes, axis=-2, out=pooled[..., e:])
            if not count.all():
                pooled *= count > 0
            c += np.matmul(pooled[..., None, :], self._pooled_w)[..., 0, :]
        c += a["ctx_b"]
        np.tanh(c, out=c)

    def _bind(self, shape: tuple[int, ...]) -> None:
        e, c, d = self.widths
        self._shape, each = shape, shape[:-1]
        self._x, self._h, self._z = (np.empty((*each, k), np.float32) for k in (shape[-1], e, d))
        self._more = np.empty((*each, len(self.arrays["out_b"])), np.float32)
        self._c, self._pooled = np.zeros((*shape[:-2], c), np.float32), np.zeros((*shape[:-2], 2 * e), np.float32)

    @staticmethod
    def _multiply(x: Float32Array, w: Float32Array, out: Float32Array) -> None:
        """Fill ``out`` (..., N, B) with ``x`` (..., N, A) times ``w`` (A, B): host by host, and on one core."""
        most = max(ONE_CORE // max(w.size, 1), 1)
        for first in range(0, x.shape[-2], most):
            np.matmul(x[..., first : first + most, :], w, out=out[..., first : first + most, :])


def _packed(a: Arrays) -> Float32Array:
    """Return all arrays end to end, in the order in which compiled/network.c reads them."""
    parts: list[Float32Array] = [a[name] for name in NORMALISATION]
    for names in (("enc_b", "enc_w"), ("ctx_b", "ctx_w"), ("head_b", "head_w"), ("out_b", "out_w", "lin_w")):
        for name in names:
            rows = np.atleast_2d(a[name]) if a[name].size or a[name].ndim == 2 else np.zeros((1, 0), np.float32)
            width = -(-rows.shape[1] // BLOCK) * BLOCK
            padded = np.zeros((len(rows), width), np.float32)
            padded[:, : rows.shape[1]] = rows
            parts.append(padded.ravel())
    return np.concatenate(parts)
