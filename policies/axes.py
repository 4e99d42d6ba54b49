"""Sums, extremes and orders along the axes of (..., N, R) arrays, faster than numpy's own reductions.

numpy reduces along a short last axis, or along the VMs of a batch of small hosts, one little inner loop at a time;
these go over whole columns instead. The answer for a host does not depend on how many stand beside it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .host import BoolArray, IntArray

Number = TypeVar("Number", np.float64, np.int64)


def total(x: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return (..., R) the sums over the VMs of (..., N, R)."""
    return np.asarray(np.einsum("...nr->...r", x))


def largest(x: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return (..., N) the largest over the resources of (..., N, R), R at least 1."""
    out: npt.NDArray[Number] = x[..., 0].copy()
    for r in range(1, x.shape[-1]):
        np.maximum(out, x[..., r], out=out)
    return out


def any_of(x: BoolArray) -> BoolArray:
    """Return (..., N) whether any resource of (..., N, R) holds, R at least 1."""
    out: BoolArray = x[..., 0].copy()
    for r in range(1, x.shape[-1]):
        np.logical_or(out, x[..., r], out=out)
    return out


def all_of(x: BoolArray) -> BoolArray:
    """Return (..., N) whether all resources of (..., N, R) hold, R at least 1."""
    out: BoolArray = x[..., 0].copy()
    for r in range(1, x.shape[-1]):
        np.logical_and(out, x[..., r], out=out)
    return out


def flat_positions(order: IntArray) -> IntArray:
    """Turn row numbers (..., n, c) for each column into positions in the flattened array, in place; return them.

    ``take()`` with these costs less than ``take_along_axis()``.
    """
    n, c = order.shape[-2:]
    order *= c
    order += np.arange(c)
    if order.ndim > 2:
        order += (np.arange(order.size // max(n * c, 1)) * (n * c)).reshape(*order.shape[:-2], 1, 1)
    return order


def flat_rows(order: IntArray) -> IntArray:
    """Turn row numbers (..., n) into positions in the flattened (..., n) array, in place; return them."""
    n = order.shape[-1]
    if order.ndim > 1:
        order += (np.arange(order.size // max(n, 1)) * n).reshape(*order.shape[:-1], 1)
    return order
