"""Backlog-aware water-filling: max-min fair shares of asks that cover demand and the backlog to be cleared in time."""

from __future__ import annotations

from .water_filling import WaterFilling


class BacklogWaterFilling(WaterFilling):
    """Water-filling of ``upper x headroom + backlog / clear_ticks``, which its forecaster puts into the request.

    A request without a backlog (or one of a forecaster that does not look at it) is plain water-filling.
    """

    name = "backlog-water-filling"
