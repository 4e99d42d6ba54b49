"""What every VM will want 10 to 100 ms from now, with how sure that is: numpy only, all VMs in one call.

``base`` and ``ewma`` serve the plain policies. The quantile forecasters work on :class:`~.history.History`, a ring of
what was seen of every series (a VM's demand for a resource), and answer for all series and horizons at once.
"""

from .base import PROBE, Forecast, Forecaster, LastValue, at_reservation, carry, observed_demand
from .ewma import MISSING_WIDEN, Ewma, EwmaKnobs

__all__ = [
    "MISSING_WIDEN",
    "PROBE",
    "Ewma",
    "EwmaKnobs",
    "Forecast",
    "Forecaster",
    "LastValue",
    "at_reservation",
    "carry",
    "observed_demand",
]
