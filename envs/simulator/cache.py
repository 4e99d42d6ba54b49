"""The L3 cache: miss ratio against ways, and how the shared class's ways divide themselves.

Miss-ratio curves are of the family ``m(w) = m_all + (m_none - m_all) / (1 + (w / w_half) ** k)``: a saturating Hill
function, monotone, with the two end points and the half-way point as its parameters. Shared ways divide in proportion
to the access rates, the steady state of random replacement when nearly all accesses to a crowded cache insert (each
insertion evicts a line at random, so a VM's share of the lines equals its share of the insertions).
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray

from .zones import ZoneSums

ONE_ZONE = ZoneSums(np.zeros(0, np.int64), 1)
ENOUGH_SHARE = 0.9
"""A VM "needs" the ways at which this share of its avoidable misses is gone."""


def miss_ratio(
    ways: FloatArray, none: FloatArray, all_: FloatArray, half_ways: FloatArray, steepness: FloatArray
) -> FloatArray:
    """Return the miss ratio (0..1) at ``ways`` (>= 0, may be fractions); every argument broadcasts."""
    return np.asarray(all_ + (none - all_) / (1.0 + (ways / half_ways) ** steepness))


def ways_needed(half_ways: FloatArray, steepness: FloatArray, most: float) -> FloatArray:
    """Return the ways at which ENOUGH_SHARE of the avoidable misses are gone, at most ``most``."""
    odds = ENOUGH_SHARE / (1.0 - ENOUGH_SHARE)
    return np.minimum(half_ways * odds ** (1.0 / steepness), most)


def effective_ways(
    own: FloatArray,
    cold: FloatArray,
    access_rate: FloatArray,
    *,
    total: FloatArray | float,
    shared: float,
    zones: ZoneSums | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Return the ways that each VM profits from, (H, N), and who is in the shared class.

    ``own``: (H, N) ways held, 0 for the shared class; ``cold``: those of them still empty; ``access_rate``: (H, N)
    any unit. ``total`` ways, () or (H, N), may be filled in a VM's zone, ``shared`` always belong to its shared class.
    """
    zones = ONE_ZONE if zones is None else zones
    together = own <= 0.0
    pool = np.maximum(total - zones.total(own), shared)
    weight = (access_rate + 1e-12) * together
    crowd = zones.total(weight)
    share = weight * (pool / np.maximum(crowd, 1e-300))
    return np.where(together, share, own - cold), together
