"""How long the writes of a run take by themselves: what the apply stage is compared with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

from foreshare.envs.hal.clock import MonotonicClock
from foreshare.policies.errors import HalError, HostError

READ_BYTES = 8192
Ticks = Sequence[Sequence[tuple[str, bytes]]]
_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.c")


def compiler() -> str | None:
    """Return the C compiler that would be used, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def measure_floor(ticks: Ticks, gap_ns: int, *, use_c: bool | None = None) -> list[float]:
    """Repeat the calls of each tick with ``gap_ns`` between ticks; return microseconds per tick.

    A call is (full path, payload to write); an empty payload is a read of the file.

    By a C helper, compiled now into a temporary folder; by a tight Python loop where there is no compiler (or where
    ``use_c`` is False). Raises HostError where a path cannot be written or the helper cannot be built.
    """
    if use_c is None:
        use_c = compiler() is not None
    return _by_c(ticks, gap_ns) if use_c else _by_python(ticks, gap_ns)


def _by_c(ticks: Ticks, gap_ns: int) -> list[float]:
    cc = compiler()
    if cc is None:
        raise HostError("there is no C compiler (cc, gcc or clang) on this host")
    index = {path: k for k, path in enumerate(dict.fromkeys(p for tick in ticks for p, _ in tick))}
    if any("\n" in path for path in index):
        raise HostError("a path with a newline cannot be measured")
    rows = (" ".join([str(len(t)), *(f"{index[p]} {len(data)} {data.hex()}" for p, data in t)]) for t in ticks)
    lines = [f"{gap_ns} {len(index)} {len(ticks)}", *index, *rows]
    with tempfile.TemporaryDirectory(prefix="foreshare-floor-") as folder:
        program = os.path.join(folder, "floor")
        built = subprocess.run([cc, "-O2", "-o", program, _SOURCE], capture_output=True, text=True, check=False)
        if built.returncode:
            raise HostError(f"{cc} could not build the floor measurement: {built.stderr.strip()[:200]}")
        allowed_s = 60 + 2 * len(ticks) * gap_ns * 1e-9
        try:
            ran = subprocess.run(
                [program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=allowed_s
            )
        except subprocess.TimeoutExpired as error:
            raise HalError("measure", "floor", 0, f"no answer within {allowed_s:.0f} s") from error
    if ran.returncode:
        raise HostError(f"the floor measurement stopped: {ran.stderr.strip()[:200] or ran.returncode}")
    return [int(line) / 1000 for line in ran.stdout.split()]


def _by_python(ticks: Ticks, gap_ns: int) -> list[float]:
    fds: dict[str, int] = {}
    took: list[float] = []
    clock = MonotonicClock()
    try:
        for path in dict.fromkeys(p for tick in ticks for p, _ in tick):
            try:
                fds[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(f"{path}: {error.strerror}") from error
        prepared = [[(fds[path], data) for path, data in tick] for tick in ticks]
        now, write, read = clock.now_ns, os.pwrite, os.pread
        at = now() + gap_ns
        for jobs in prepared:
            clock.sleep_until(at)
            start = now()
            for fd, data in jobs:
                if data:
                    write(fd, data, 0)
                else:
                    read(fd, READ_BYTES, 0)
            end = now()
            took.append((end - start) / 1000)
            at = max(at + gap_ns, end)
    except OSError as error:
        raise HostError(f"the floor measurement stopped: {error.strerror}") from error
    finally:
        for fd in fds.values():
            os.close(fd)
    return took
