"""CMT and MBM in a thread of their own: the kernel's reads wait for locks and for other CPUs, a tick must not.

What is published carries the time at which it was read. Everything else than a number (``Unavailable``, ``Error``,
``Unassigned``: rdtgroup_mondata_show()) is missing, not 0. A counter that went back was reset, and one that was not
read for two seconds may have been: neither difference is used.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foreshare.policies.host import CACHE, MEMORY, BoolArray, FloatArray, IntArray
from foreshare.policies.reading import Quality, Reading

from .files import DIRECTORY, Files

if TYPE_CHECKING:
    from .partitions import Partitions

GAP_NS = 2_000_000_000
_NEAR_LIMIT = 0.95
_SLACK_WAYS = 1.0
_OCCUPANCY, _BYTES = "llc_occupancy", "mbm_total_bytes"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One round of readings."""

    t_ns: IntArray
    """(N,) monotonic time of each VM's reading."""
    rate: FloatArray
    """(N,) bytes per second of memory traffic since the round before; NaN: missing."""
    occupancy: FloatArray
    """(N,) bytes in the L3, all domains of the zone; NaN: missing."""
    reset: FloatArray
    """(N,) 1 where a counter went back since the round before."""


Watched = tuple[str | None, tuple[tuple[str, ...] | None, ...]]


class Monitor:
    """Reads every VM's counters once a period. :meth:`once` does one round, :meth:`start` makes a thread of them."""

    def __init__(self, files: Files, n: int, period_ns: int, features: tuple[str, ...]) -> None:
        self._files, self._n, self._period_s = files, n, period_ns * 1e-9
        self._features = features
        self._watched: Watched = (None, (None,) * n)
        self._opened: Watched | None = None
        self._top = -1
        self._fds: list[dict[str, list[int]] | None] = [None] * n
        self._then = np.full(n, np.nan)
        self._then_ns = np.zeros(n, np.int64)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.measured = Measured(np.zeros(n, np.int64), *(np.full(n, np.nan) for _ in range(3)))
        self._shown_ns = np.full(n, -1, np.int64)
        """Time of the values that the latest reading was given."""
        self._shown = {r: (np.full(n, np.nan), np.full(n, np.nan), np.full(n, Quality.MISSING, np.uint8))
                       for r in (MEMORY, CACHE)}  # fmt: skip
        """By resource: units in use, units that could be used, quality."""
        self._mask: IntArray = np.zeros(n, np.int64)
        self._least = np.full(n, np.nan)
        self.overfull: BoolArray = np.zeros(n, bool)
        """(N,) VMs that filled ways which they do not have."""
        self.failed = ""
        """Why the latest round was none; empty if it was one."""

    def watch(self, parts: Partitions) -> None:
        """Tell which files are each VM's from now on; the reader opens them at its next round."""
        alive = [g is not None for g in parts.groups]
        rows: list[tuple[str, ...] | None] = []
        for row in range(self._n):
            s = int(parts.state.group[row])
            group = parts.groups[s]
            own = parts.named[s][1] == row or parts.members.monitored(row)
            if group is None or not own or not parts.state.here[row]:
                rows.append(None)
                continue
            zone = (parts.offer.domain_zone == parts.table.zone[row]) & parts.state.live
            base = parts.members.mon_path(row, group)
            rows.append(tuple(f"{base}/mon_data/mon_L3_{d:02d}" for d in parts.offer.domain_id[zone].tolist()))
        self._watched = (parts.tree.path if any(alive) else None, tuple(rows))

    def start(self) -> None:
        """Read in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="foreshare-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close its files."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        if self._thread is None or not self._thread.is_alive():
            self._forget()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self.once(time.monotonic_ns)
                self.failed = ""
            except OSError as error:  # the mount went away under our hands: the next watch() says where it is now
                self.failed = error.strerror or str(error)
                self._forget()

    def once(self, now_ns: object = time.monotonic_ns) -> None:
        """Do one round. Raises OSError where the mount cannot be opened."""
        clock = now_ns if callable(now_ns) else time.monotonic_ns
        watched = self._watched
        if watched is not self._opened:
            self._reopen(watched)
        rate, occupancy, reset = (np.full(self._n, np.nan) for _ in range(3))
        t = np.zeros(self._n, np.int64)
        for row, fds in enumerate(self._fds):
            t[row] = clock()
            if fds is None:
                self._then[row] = np.nan
                continue
            occupancy[row] = self._sum(fds.get(_OCCUPANCY, []))
            now = self._sum(fds.get(_BYTES, []))
            gap = t[row] - self._then_ns[row]
            reset[row] = float(now < self._then[row])
            if now >= self._then[row] and 0 < gap <= GAP_NS:
                rate[row] = (now - self._then[row]) * 1e9 / gap
            self._then[row], self._then_ns[row] = now, t[row]
        self.measured = Measured(t, rate, occupancy, reset)

    def _sum(self, fds: list[int]) -> float:
        """Return the sum of all domains; NaN where any of them has no value."""
        total = 0.0 if fds else np.nan
        for fd in fds:
            try:
                word = self._files.pread(fd, 32, 0).strip()
            except OSError:
                return np.nan
            if not word.isdigit():
                return np.nan
            total += int(word)
        return total

    def _reopen(self, watched: Watched) -> None:
        self._forget()
        path, rows = watched
        self._opened = watched
        if path is None:
            return
        self._top = self._files.open(path, DIRECTORY)
        for row, folders in enumerate(rows):
            if folders is None:
                continue
            fds: dict[str, list[int]] = {}
            try:
                for folder in folders:
                    for event in self._features:
                        if event in (_OCCUPANCY, _BYTES):
                            fd = self._files.open(f"{folder}/{event}", os.O_RDONLY, dir_fd=self._top)
                            fds.setdefault(event, []).append(fd)
            except OSError:
                for some in fds.values():
                    for fd in some:
                        self._files.close(fd)
                continue  # the group went away since: its VM has no value until it is watched anew
            self._fds[row] = fds

    def _forget(self) -> None:
        for fds in self._fds:
            for some in (fds or {}).values():
                for fd in some:
                    self._files.close(fd)
        self._fds = [None] * self._n
        self._then[:] = np.nan
        self._opened = None
        if self._top >= 0:
            self._files.close(self._top)
            self._top = -1

    def fill(self, reading: Reading, parts: Partitions) -> None:
        """Put the newest round into ``reading``.

        A value is news once: in every later reading until the next round it is STALE, with the limit that it was seen
        under, so that nobody counts one observation ten times. Beyond two seconds it is MISSING.
        """
        m = self.measured
        news = m.t_ns != self._shown_ns
        self._shown_ns = m.t_ns.copy()
        old = (reading.t_ns - m.t_ns > GAP_NS) | ~reading.present | (reading.dt_ns <= 0)
        for r, value, limit in self._columns(m, parts):
            usage, under, quality = self._shown[r]
            found = ~np.isnan(value)
            fresh = np.where(found, Quality.OK, Quality.MISSING).astype(np.uint8)
            if r == CACHE:
                self._compare(value, limit, parts.state.ways, news)
            if r == MEMORY:
                fresh[found & (value >= _NEAR_LIMIT * limit) & (parts.state.memory > 0)] |= np.uint8(Quality.CENSORED)
                fresh[m.reset == 1] |= np.uint8(Quality.RESET)
            np.copyto(usage, value, where=news)
            np.copyto(under, limit, where=news)
            quality |= np.where(found, Quality.STALE, 0).astype(np.uint8)
            np.copyto(quality, fresh, where=news)
            gone = old | ~found
            reading.usage[:, r] = reading.demand_low[:, r] = np.where(gone, np.nan, usage)
            reading.limit[:, r] = np.where(reading.present, under, np.nan)
            reading.quality[:, r] = np.where(old, Quality.MISSING, quality)

    def _compare(self, ways: FloatArray, own: FloatArray, mask: IntArray, news: BoolArray) -> None:
        """Look for VMs that fill more than their mask allows: a tool that writes the registers leaves no other trace.

        What lies outside the mask since before it was written can only become less, so a VM never has more than its
        own ways and the least that it had since then.
        """
        changed = (mask != self._mask) | np.isnan(ways) | np.isnan(self._least)
        self._mask[changed], self._least[changed] = mask[changed], ways[changed]
        self._least = np.fmin(self._least, ways)
        now = (mask != 0) & (ways > own + self._least + _SLACK_WAYS)
        self.overfull = np.where(news, now, self.overfull)

    def _columns(self, m: Measured, parts: Partitions) -> Iterator[tuple[int, FloatArray, FloatArray]]:
        """Yield (resource, units in use (N,), units that could be used (N,)) of what moves and can be measured here."""
        state, offer = parts.state, parts.offer
        if offer.memory_units:
            share = np.where(state.memory > 0, state.memory, offer.memory_units).astype(float)
            yield MEMORY, m.rate / offer.memory_unit_bytes, share
        if offer.ways and offer.way_bytes:
            own = np.bitwise_count(state.fillable()).astype(float)
            shared = np.array([mask.bit_count() for mask in state.shared], float)[state.zone]
            count = np.array([(offer.domain_zone == z).sum() for z in range(len(state.shared))], float)
            ways = m.occupancy / (offer.way_bytes * np.maximum(count, 1))[state.zone]
            yield CACHE, ways, np.where(own > 0, own, shared)
