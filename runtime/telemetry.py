"""Recording a host: sample at tick rate, hand each reading to the recorder's process, touch no control."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreshare.envs.hal import Hal, Host
from foreshare.envs.hal.recorded_host import recording_metadata
from foreshare.policies.reading import Reading

from .journal import boot_id
from .recorder import Recorder


def metadata_of(hal: Hal, tick_ms: float) -> dict[str, Any]:
    """Return the facts that go with a recording of ``hal``, its clock anchored now."""
    return recording_metadata(
        hal.topology, hal.vms, hal=hal.name, tick_ns=round(tick_ms * 1e6), boot_id=boot_id(),
        monotonic_ns=hal.clock.now_ns(), utc_ns=time.time_ns(),
    )  # fmt: skip


def record(
    hal: Hal, host: Host, out: Path, *, ticks: int, tick_ms: float, stop: Callable[[], bool] = lambda: False
) -> tuple[int, int]:
    """Record ``ticks`` ticks into ``out``; return ticks written and dropped. Raises HostError if the disk fails."""
    reading = Reading.empty(len(host))
    tick_ns = round(tick_ms * 1e6)
    recorder = Recorder(out, len(host), metadata_of(hal, tick_ms))
    try:
        hal.sample(reading)  # rates start from here
        next_ns = hal.clock.now_ns() + tick_ns
        for _ in range(ticks):
            if stop():
                break
            hal.clock.sleep_until(next_ns)
            hal.sample(reading)
            recorder.put(reading, wait_s=0.0 if hal.name == "linux" else 10.0)
            late = hal.clock.now_ns() - next_ns
            next_ns += (1 + max(0, late // tick_ns)) * tick_ns
    finally:
        written, dropped = recorder.close()
    return written, dropped
