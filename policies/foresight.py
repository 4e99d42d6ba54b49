"""The first half of a tick in one compiled call (compiled/tick.c), for one host whose forecaster is BacklogForecaster.

Check the reading, estimate, forecast, ask, keep back, look at deadlines: what each does stands with it, and what runs
where nothing was compiled or hosts come in a batch are its steps one by one. A tick comes after milliseconds of other
work; six calls with a hundred arrays between them, all fetched anew, took twice as long as what they do.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import kernel
from .allocators import Request
from .allocators.base import IN_DOUBT
from .backlog_forecast import BacklogForecaster
from .deadlines import Deadlines
from .forecast import Forecast
from .host import BoolArray, Host, IntArray
from .reading import Reading
from .trust import NEAR_LIMIT, Trust

_NOTHING_DUE = (None,) * 9


class Foresight:
    """Fills forecast, request and deadlines from a reading. All belong to one mind and one set of VMs."""

    def __init__(
        self, host: Host, trust: Trust, forecaster: BacklogForecaster, forecast: Forecast, request: Request,
        held: IntArray, fixed: BoolArray, pinned: BoolArray, deadlines: Deadlines | None,
    ) -> None:  # fmt: skip
        self.held, self.pinned, self.forecaster = held, pinned, forecaster
        """Units decided last, and who gets his reservation; it is these arrays that are looked at."""
        self._trust, self._deadlines, self._host = trust, deadlines, host
        self._per_ns = forecaster.estimator.cpu_per_ns
        if deadlines is not None:
            deadlines.bind(host)
        f, q = forecast, request
        self._arrays: tuple[Any, ...] = (
            kernel.tables(host), *trust.arrays, *forecaster.estimator.arrays, *forecaster.arrays,
            f.mean, f.upper, f.clearing, f.usage, f.backlog, f.delay_ticks, f.unsure,
            q.ask, q.need, q.usage, q.backlog, q.delay_ticks, IN_DOUBT, held, fixed, pinned,
            *(deadlines.arrays if deadlines is not None else _NOTHING_DUE),
        )  # fmt: skip
        self.memo, self._cleaned_memo = kernel.Memo(), kernel.Memo()

    def update(self, compiled: ModuleType, reading: Reading, headroom: float) -> Reading:
        """Take in a reading; return it, or a copy without what cannot be true."""
        trust, due = self._trust, self._deadlines
        slot = due.turn() if due is not None else 0
        dt_ns, moved = reading.dt_ns, trust.moved(reading)
        bad = compiled.foresee(
            self.memo.held, self._arrays, reading.usage, reading.demand_low, reading.limit, reading.wait_ns,
            reading.quality, reading.present, False, moved, dt_ns, self._per_ns, NEAR_LIMIT, headroom, slot,
        )  # fmt: skip
        trust.found(abs(bad))
        if bad >= 0:
            return reading
        reading = trust.cleaned(reading)
        compiled.foresee(
            self._cleaned_memo.held, self._arrays, reading.usage, reading.demand_low, reading.limit, reading.wait_ns,
            reading.quality, reading.present, True, moved, dt_ns, self._per_ns, NEAR_LIMIT, headroom, slot,
        )  # fmt: skip
        return reading
