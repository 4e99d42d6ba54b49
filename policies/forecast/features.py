"""What networks see of a series: lags, means over growing windows, how much waits, how busy its host is.

Amounts are divided by the scale of their series and their square root is taken, so that one network serves series of
any size and a burst does not drown the rest. Layout (F, S): a feature a row, which is what the first matrix product
wants.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import R

from .history import Float32Array, History

LAGS = 20
"""Newest ticks that are seen one by one."""
_BLOCKS = np.array([20, 30, 50, 100, 200])
_SPREAD = np.array([0, 10, 50, 200])
_WAIT_LAGS = 3
_WAIT_BLOCKS = np.array([3, 10, 50])
_MEANS = len(_BLOCKS) - 1
_ROOTS = LAGS + _MEANS + (len(_SPREAD) - 1) + _WAIT_LAGS + (len(_WAIT_BLOCKS) - 1)
_HOST = _ROOTS + 2
_KIND = _HOST + 1
F = _KIND + R
"""Number of features."""
MOST_ROOT = 8.0
NAMES = (
    *(f"lag_{i}" for i in reversed(range(LAGS))),
    *(f"mean_{a}_{b}" for a, b in zip(_BLOCKS[:-1], _BLOCKS[1:], strict=True)),
    *(f"rms_{b}" for b in _SPREAD[1:]),
    *(f"wait_{i}" for i in reversed(range(_WAIT_LAGS))),
    *(f"wait_mean_{a}_{b}" for a, b in zip(_WAIT_BLOCKS[:-1], _WAIT_BLOCKS[1:], strict=True)),
    "host_now", "host_mean_10", "age", *(f"is_{r}" for r in ("cpu", "cache", "memory", "io")),
)  # fmt: skip
"""In order; (F,)."""
_PER_BLOCK = (1.0 / np.diff(_BLOCKS)).astype(np.float32)[:, None]
_PER_SPREAD = (1.0 / _SPREAD[1:]).astype(np.float32)[:, None]
_PER_WAIT = (1.0 / np.diff(_WAIT_BLOCKS)).astype(np.float32)[:, None]


class FeatureMaker:
    """Fills one preallocated array each tick. ``capacity`` (S,) units of the pool that each series draws on."""

    def __init__(self, size: int, capacity: Float32Array) -> None:
        self.out: Float32Array = np.zeros((F, size), np.float32)
        """(F, S), overwritten each tick."""
        self.out[_KIND:] = np.tile(np.eye(R, dtype=np.float32), size // R)
        self._per_capacity = np.where(capacity > 0, 1.0 / np.maximum(capacity, 1e-6), 0.0).astype(np.float32)
        self._per_scale = np.ones(size, np.float32)

    def make(self, history: History, vms: int) -> Float32Array:
        """Return (F, S) for the newest tick; ``vms``: N, the VMs of one host."""
        out = self.out
        out[:LAGS] = history.demand(LAGS)
        at = LAGS
        sums = history.sums(0, _BLOCKS)
        np.subtract(sums[:-1], sums[1:], out=out[at : at + _MEANS], casting="unsafe")
        out[at : at + _MEANS] *= _PER_BLOCK
        at += _MEANS
        spread = out[at : at + len(_PER_SPREAD)]
        sums = history.sums(1, _SPREAD)
        np.subtract(sums[:1], sums[1:], out=spread, casting="unsafe")
        spread *= _PER_SPREAD
        np.maximum(spread, 0.0, out=spread)
        np.sqrt(spread, out=spread)
        at += len(_PER_SPREAD)
        out[at : at + _WAIT_LAGS] = history.waiting(_WAIT_LAGS)
        at += _WAIT_LAGS
        sums = history.sums(2, _WAIT_BLOCKS)
        np.subtract(sums[:-1], sums[1:], out=out[at:_ROOTS], casting="unsafe")
        out[at:_ROOTS] *= _PER_WAIT
        roots = out[:_ROOTS]
        np.divide(1.0, history.scale, out=self._per_scale)
        roots *= self._per_scale
        np.maximum(roots, 0.0, out=roots)  # differences of running sums may be a hair below 0
        np.sqrt(roots, out=roots)
        np.minimum(roots, MOST_ROOT, out=roots)
        host = out[_ROOTS:_HOST]
        host[0] = history.newest
        host[1] = history.mean(0, 10)
        host *= self._per_capacity
        by_host = host.reshape(2, -1, vms, R)
        by_host[:] = np.minimum(by_host.sum(axis=2, keepdims=True), 4.0)
        np.minimum(history.age, 16.0, out=out[_HOST])
        out[_HOST] *= 1.0 / 16.0
        return out
