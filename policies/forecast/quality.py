"""How good the forecasts of each series are, all the time; and what stands in for those that have gone bad.

Judged 50 ms ahead, with a memory of about MEMORY judgements (5 s at 10 ms): the error of the median over the
usual step from tick to tick (MASE, Hyndman and Koehler 2006) and over the error of the last value at the same horizon,
the pinball loss and the coverage of each level. A forecast is **bad** once its error is BAD_ERROR times that of the
last value, or its 0.9 quantile covers less than BAD_COVER; it is good again when both have come back by a margin. While
it is bad, the last value stands in for it, with margins from the last value's own errors.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, IntArray

from .history import HORIZONS, LEVELS, Float32Array, History, K, Q, carry_series

MEMORY = 500
MIN_JUDGED = 100
BAD_ERROR, GOOD_ERROR = 1.5, 1.2
BAD_COVER, GOOD_COVER = 0.75, 0.82
JUDGED = 1
"""The horizon that is judged."""
_LEVEL = np.array(LEVELS, np.float32)[:, None]
MARGIN = (0.0, 2.5, 6.0)
"""What the stand-in adds to the last value at each level, in its mean absolute errors."""
_TINY = 1e-9


class ForecastQuality:
    """Rolling scores of every series."""

    def __init__(self, size: int) -> None:
        self.judged: IntArray = np.zeros(size, np.int64)
        """(S,) how many forecasts were judged."""
        self._error, self._naive, self._step = (np.zeros(size, np.float32) for _ in range(3))
        self.pinball: Float32Array = np.zeros((Q, size), np.float32)
        """(Q, S) units."""
        self.coverage: Float32Array = np.broadcast_to(_LEVEL, (Q, size)).copy()
        """(Q, S) shares."""
        self.bad: BoolArray = np.zeros(size, bool)
        """(S,) the last value plus a margin stands in."""
        self._said: Float32Array = np.zeros((HORIZONS[JUDGED].ahead + 1, Q, size), np.float32)
        self._margin = np.array(MARGIN, np.float32)[:, None]

    @property
    def mase(self) -> Float32Array:
        """(S,) the error of the median over the usual step of the series; 0 where nothing moved."""
        return np.asarray(np.where(self._step > _TINY, self._error / np.maximum(self._step, _TINY), 0.0))

    @property
    def against_last(self) -> Float32Array:
        """(S,) the error of the median over that of the last value; 1 where the last value was never wrong."""
        return np.asarray(np.where(self._naive > _TINY, self._error / np.maximum(self._naive, _TINY), 1.0))

    def update(self, history: History, truth: Float32Array, out: Float32Array) -> None:
        """Judge what was said 5 ticks ago by ``truth`` (S,), keep what is said now, and replace it where it is bad.

        ``out`` (K, Q, S): changed in place for the series that are bad.
        """
        h = HORIZONS[JUDGED]
        slot = history.count % len(self._said)
        past = self._said[(history.count - h.ahead) % len(self._said)]
        good = history.judged(h) & ~history.lower_bound(h) & (history.count > h.ahead)
        if good.any():
            values = history.demand(h.ahead + 1)
            self._judge(truth, past, values[0], values[-2], values[-1], good)
        self._said[slot] = out[JUDGED]
        if self.bad.any():
            last = history.newest[self.bad]
            stand_in = last + self._margin * self._naive[self.bad]
            out[:, :, self.bad] = np.broadcast_to(stand_in, (K, *stand_in.shape))

    def _judge(
        self, truth: Float32Array, past: Float32Array, origin: Float32Array, before: Float32Array, newest: Float32Array,
        good: BoolArray,
    ) -> None:  # fmt: skip
        self.judged += good
        gain = (good / np.minimum(np.maximum(self.judged, 1), MEMORY)).astype(np.float32)
        miss = truth - past
        self._error += (np.abs(miss[0]) - self._error) * gain
        self._naive += (np.abs(truth - origin) - self._naive) * gain
        self._step += (np.abs(newest - before) - self._step) * gain
        self.pinball += (np.maximum(miss * _LEVEL, miss * (_LEVEL - 1.0)) - self.pinball) * gain
        # On a quantile is neither above nor below it; an idle VM's 0 is where its quantiles are.
        self.coverage += (np.where(miss == 0.0, _LEVEL, miss < 0.0) - self.coverage) * gain
        ripe = self.judged >= MIN_JUDGED
        cover = self.coverage[1]
        worse = (self._error > BAD_ERROR * self._naive + _TINY) | (cover < BAD_COVER)
        fine = (self._error <= GOOD_ERROR * self._naive + _TINY) & (cover >= GOOD_COVER)
        self.bad = ripe & (worse | (self.bad & ~fine))

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> ForecastQuality:
        """Return the scores of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = ForecastQuality(size)
        for name in ("judged", "_error", "_naive", "_step", "pinball", "coverage", "bad", "_said"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
