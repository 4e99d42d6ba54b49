"""Limits on memory bandwidth as hardware has them: in its own steps, and on so many classes only.

Where there are more VMs than classes, those that share one may use the sum of what they were given, whoever of them
wants it (see envs/classes.py). With ``w`` what a member wants, ``W`` the sum over its class and
``L`` the class's limit, it can have what the others leave, and no less than its part of a crowded class, where
throttling slows all alike: ``max(L - (W - w), L w / W)``. What it wants is what the last tick left queued and what came
in it, as far as its CPUs would serve that. ``L`` is rounded up to whole steps, as the kernel rounds (bw_validate()).
"""

from __future__ import annotations

import numpy as np

from foreshare.envs.classes import regroup
from foreshare.policies.host import CPU, MEMORY, FloatArray, IntArray, Isolation, VmTable

from .model import HostModel
from .scenario import HostShape

_NOTHING = 1e-12


class BandwidthClasses:
    """The classes of one host's VMs. Arrays are (H, N)."""

    def __init__(self, host: HostShape, model: HostModel, at: IntArray | None = None) -> None:
        """``at`` (N,): class of each VM, where that is known."""
        n = len(model.vms)
        self._step, self._most = float(host.memory_step), model.home[:, MEMORY]
        self.at: IntArray = classes_of(model.vms, host.memory_classes) if at is None else at
        """(N,) class of each VM."""
        kinds, of = np.unique(model.vms.zone * n + self.at, return_inverse=True)  # each L3 domain has its own controls
        self._of: IntArray = of
        self._member: FloatArray = (of == np.arange(len(kinds))[:, None]).astype(np.float64)
        self.shift: FloatArray | None = None
        """(H, N) what the newest limits are below the VMs' own units; negative where they are above."""

    def limits(self, units: FloatArray, wanted: FloatArray) -> FloatArray:
        """Return (H, N) what each VM can use at most of the ``units`` that all were given, if they want ``wanted``."""
        total = np.minimum(np.ceil(self._together(units) / self._step - 1e-9) * self._step, self._most)
        crowd = self._together(wanted)
        part = total * (wanted / np.maximum(crowd, _NOTHING))
        return np.maximum(total - (crowd - wanted), part)

    def apply(self, holding: FloatArray, cold: FloatArray, queued: FloatArray, need: FloatArray) -> None:
        """Count what limits take from ``holding`` (H, N, R) as cold, and what they add as warmer than warm.

        ``queued`` (H, N) requests, ``need`` (H, N, R) unit-ticks of one.
        """
        served = np.minimum(queued, holding[..., CPU] / np.maximum(need[..., CPU], _NOTHING))
        units = holding[..., MEMORY]
        self.shift = units - self.limits(units, served * need[..., MEMORY])
        cold[..., MEMORY] += self.shift

    def lift(self, cold: FloatArray) -> None:
        """Undo the newest :meth:`apply`."""
        if self.shift is not None:
            cold[..., MEMORY] -= self.shift

    def _together(self, amounts: FloatArray) -> FloatArray:
        # Not a matrix product: its rounding would depend on how many hosts there are.
        return np.asarray((amounts[:, None, :] * self._member).sum(axis=-1)[:, self._of])


def classes_of(vms: VmTable, classes: int) -> IntArray:
    """Return the class (N,) of each VM: its own, or, where there are fewer than VMs, one with others that need as much.

    Isolated VMs have one each all the same, as long as one is left for the others.
    """
    n = len(vms)
    if not classes or n <= classes:
        return np.arange(n)
    apart = np.flatnonzero(vms.isolation != Isolation.SHARED)[: classes - 1]
    loose = np.setdiff1d(np.arange(n), apart)
    out = np.zeros(n, np.int64)
    out[apart] = np.arange(len(apart))
    left = classes - len(apart)
    at, _ = regroup(
        vms.reservation[loose, MEMORY].astype(float), vms.zone[loose], np.zeros(len(loose), bool), vms.rank[loose],
        np.ones(len(loose), np.int64), np.arange(len(loose)) % left, left, 1 << 30,
    )  # fmt: skip
    out[loose] = len(apart) + at
    return out


def bandwidth_classes(host: HostShape, model: HostModel) -> BandwidthClasses | None:
    """Return the classes of a host, or None where every VM has the limit that it was given."""
    if host.memory_step == 1 and not 0 < host.memory_classes < len(model.vms):
        return None
    return BandwidthClasses(host, model)
