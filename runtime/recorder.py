"""Records readings without ever holding up a tick: a ring in shared memory, drained to Parquet by a process of its own.

One writer (the loop), one reader (the recorder). A slot is one tick; ``head`` counts slots written, ``tail`` slots
read, both 64-bit and each written by one side only. A full ring costs the reading, which is counted, never the tick.
The recorder ends when the loop says so or when the loop is gone: it watches a pipe that closes with its process.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import ForeshareError, HostError
from foreshare.policies.host import R
from foreshare.policies.reading import Reading

_HEADER = 64
_HEAD, _TAIL, _DROPPED, _CLOSED = range(4)
_FIELDS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("usage", "f8", (R,)), ("demand_low", "f8", (R,)), ("limit", "f8", (R,)), ("wait_ns", "f8", ()),
    ("quality", "u1", (R,)), ("present", "?", ()),
)  # fmt: skip


RING_BYTES, MIN_SLOTS, MAX_SLOTS = 32 << 20, 64, 1024
"""A ring holds about ten seconds of ticks, on very large hosts less: memory is the host's, not ours."""


class Ring:
    """The shared memory: a header of counters, then one array for each field, shaped (slots, N, ...)."""

    def __init__(self, memory: mmap.mmap, slots: int, n: int) -> None:
        self._memory = memory
        self.slots, self.n = slots, n
        self.count = np.frombuffer(memory, np.int64, 4)
        self.t_ns: npt.NDArray[np.int64] = np.frombuffer(memory, np.int64, slots, _HEADER)
        self.dt_ns: npt.NDArray[np.int64] = np.frombuffer(memory, np.int64, slots, _HEADER + 8 * slots)
        self.fields: dict[str, npt.NDArray[Any]] = {}
        at = _HEADER + 16 * slots
        for name, kind, shape in _FIELDS:
            size = slots * n * int(np.prod(shape, dtype=np.int64))
            self.fields[name] = np.frombuffer(memory, kind, size, at).reshape(slots, n, *shape)
            at += -(-size * np.dtype(kind).itemsize // 8) * 8

    @staticmethod
    def bytes_for(slots: int, n: int) -> int:
        """Return the size of the shared memory."""
        at = _HEADER + 16 * slots
        for _, kind, shape in _FIELDS:
            at += -(-slots * n * int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize // 8) * 8
        return at

    def put(self, reading: Reading) -> None:
        """Write one reading, or count it as dropped when the ring is full."""
        head = int(self.count[_HEAD])
        if self.full:
            self.count[_DROPPED] += 1
            return
        at = head % self.slots
        self.t_ns[at], self.dt_ns[at] = reading.t_ns, reading.dt_ns
        f = self.fields
        f["usage"][at], f["demand_low"][at], f["limit"][at] = reading.usage, reading.demand_low, reading.limit
        f["wait_ns"][at], f["quality"][at], f["present"][at] = reading.wait_ns, reading.quality, reading.present
        self.count[_HEAD] = head + 1  # x86 and arm64 (under the GIL's barriers) publish the slot before the counter

    def take(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return copies of everything unread, as (T, N, ...) arrays, or None."""
        head, tail = int(self.count[_HEAD]), int(self.count[_TAIL])
        if head == tail:
            return None
        at = np.arange(tail, head) % self.slots
        block = {name: array[at] for name, array in self.fields.items()}
        block["t_ns"], block["dt_ns"] = self.t_ns[at], self.dt_ns[at]
        self.count[_TAIL] = head
        return block

    @property
    def full(self) -> bool:
        """The reader has fallen a whole ring behind."""
        return int(self.count[_HEAD]) - int(self.count[_TAIL]) >= self.slots

    @property
    def dropped(self) -> int:
        """Readings that found the ring full."""
        return int(self.count[_DROPPED])

    @property
    def written(self) -> int:
        """Readings that found room."""
        return int(self.count[_HEAD])

    @property
    def closed(self) -> bool:
        """The loop has ended in good order."""
        return bool(self.count[_CLOSED])

    def close(self) -> None:
        """Say that nothing more will come."""
        self.count[_CLOSED] = 1


class Recorder:
    """The loop's side: owns the ring and the recorder's process."""

    def __init__(self, out: Path, n: int, metadata: dict[str, Any], *, slots: int | None = None) -> None:
        slots = slots or min(max(RING_BYTES // max(Ring.bytes_for(1, n), 1), MIN_SLOTS), MAX_SLOTS)
        self._fd = os.memfd_create("foreshare-recorder", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, Ring.bytes_for(slots, n))
        self.ring = Ring(mmap.mmap(self._fd, Ring.bytes_for(slots, n)), slots, n)
        alive, self._alive = os.pipe2(os.O_CLOEXEC)
        argv = [
            sys.executable, "-m", "foreshare.runtime.recorder", str(out), "--ring", str(self._fd),
            "--alive", str(alive),
            "--slots", str(slots), "--vms", str(n),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            argv, pass_fds=(self._fd, alive), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C ends the loop, and the loop ends the recorder
        )  # fmt: skip
        os.close(alive)
        if self._process.stdin is None:
            raise HostError("the recorder's process has no standard input")
        with self._process.stdin as stdin:
            stdin.write(json.dumps(metadata).encode())

    def put(self, reading: Reading, wait_s: float = 0.0) -> None:
        """Hand one reading over; a full ring costs it, unless there is room within ``wait_s`` (virtual clocks wait)."""
        end = time.monotonic() + wait_s
        while wait_s and self.ring.full and time.monotonic() < end and self._process.poll() is None:
            time.sleep(0.001)
        self.ring.put(reading)

    def close(self) -> tuple[int, int]:
        """End the recording; return ticks written and dropped. Raises HostError if the recorder failed."""
        self.ring.close()
        os.close(self._alive)
        error = self._process.stderr.read().decode(errors="replace") if self._process.stderr else ""
        code = self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()
        os.close(self._fd)
        if code:
            last = error.strip().splitlines()[-1] if error.strip() else f"it ended with {code}"
            raise HostError(f"the recording is incomplete: {last}")
        return self.ring.written, self.ring.dropped


def _drain(out: Path, ring: Ring, alive: int, metadata: dict[str, Any]) -> int:
    from foreshare.envs.hal.recording import RecordingWriter

    os.nice(10)
    with RecordingWriter(out, metadata) as writer:
        gone = False
        while True:
            last = ring.closed or gone
            block = ring.take()
            if block is not None:
                writer.append(block)
            elif last:
                return 0
            gone = bool(select.select([alive], [], [], 0.02)[0])


def main() -> int:
    """Run the recorder's process: descriptors from the command line, metadata as JSON on standard input."""
    parser = argparse.ArgumentParser(prog="foreshare.runtime.recorder")
    parser.add_argument("out", type=Path)
    for name in ("ring", "alive", "slots", "vms"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager tells every process; ours ends with the loop
    metadata = json.load(sys.stdin)
    memory = mmap.mmap(a.ring, Ring.bytes_for(a.slots, a.vms))
    try:
        return _drain(a.out, Ring(memory, a.slots, a.vms), a.alive, metadata)
    except (ForeshareError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
