"""What the machine itself does to anybody who wakes up every tick: an empty loop's lateness, measured beside a run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from types import TracebackType

import numpy as np

from .latency import percentiles


def overshoot_us(ticks: int, tick_ms: float, work_us: float = 0.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return (ticks,) by how many microseconds sleeping until an absolute time overshot it.

    With ``work_us``, by how many getting so much CPU time from then on did: who works can be held up as well.
    """
    late = np.empty(ticks)
    tick_ns = round(tick_ms * 1e6)
    next_ns = time.monotonic_ns() + tick_ns
    for i in range(ticks):
        left = next_ns - time.monotonic_ns()
        if left > 0:
            time.sleep(left * 1e-9)
        if work_us:
            until = time.thread_time_ns() + work_us * 1e3
            while time.thread_time_ns() < until:
                pass
        late[i] = (time.monotonic_ns() - next_ns) * 1e-3 - work_us
        missed = max(0, round(late[i] * 1e3)) // tick_ns  # as the loop does: what was missed is not caught up
        next_ns += (1 + missed) * tick_ns
    return late


class JitterBeside:
    """An empty loop in a process of its own while the block runs; ``result`` afterwards."""

    def __init__(self, ticks: int, tick_ms: float, work_us: float = 0.0) -> None:
        self._argv = [
            sys.executable, "-m", "foreshare.runtime.jitter", "--ticks", str(ticks), "--tick-ms", str(tick_ms),
            "--work-us", str(work_us),
        ]  # fmt: skip
        self.result: dict[str, float] = {}

    def __enter__(self) -> JitterBeside:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        out, _ = self._process.communicate()
        if kind is None and self._process.returncode == 0:
            self.result = json.loads(out)


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(prog="foreshare.runtime.jitter")
    parser.add_argument("--ticks", type=int, required=True)
    parser.add_argument("--tick-ms", type=float, required=True)
    parser.add_argument("--work-us", type=float, default=0.0)
    args = parser.parse_args()
    late = overshoot_us(args.ticks, args.tick_ms, args.work_us)
    sys.stdout.write(json.dumps(percentiles(late) | {"max": round(float(late.max(initial=0.0)), 1)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
