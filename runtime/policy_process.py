"""Asks a policy in a process of its own, which may be late, hang, crash, leak or be stopped: the tick goes on.

Why a process, of the three ways that there are (``foreshare bench policy`` measures them on your machine):

- *inline* is fastest, and nothing can be done about a policy that does not return;
- an *interval timer* whose handler raises reaches Python code only: not a loop in native code, which never comes back
  to the interpreter, nor a crash; and the exception can land just behind the block that it was meant for;
- a *process* survives everything, a SIGSTOP and a segmentation fault included. It costs two wake-ups of the scheduler,
  during which the default and the fallback compute their answers in its shadow, so that less of it is felt.

Our own allocators and learned policies, whose bundles hold numbers and no code, are called: on a slow machine of two
CPUs a network of 64 x 64 took 0.49 ms at p50 and 0.70 at p99 (64 VMs) when called, 0.72 and 1.55 in its process, which
is too late for most ticks. One that is slow all the same loses the tick, and its answer serves the next one.

A thread would share the interpreter's lock and the address space, and so the hang and the crash. Waiting is one ppoll
with a deadline on the socket, woken by the answer or by the end of the process, whichever comes first. Spinning on the
shared memory instead would save a wake-up and cost a CPU, which on small hosts is the one that the policy needs.

It is started, ended and replaced between ticks only, where enough of the slack is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from foreshare.policies.allocators import Request
from foreshare.policies.ask import Answer, unusable
from foreshare.policies.errors import InputError
from foreshare.policies.host import Host

from .policy_wire import ANSWER, ASK, HOST, LOAD, MAX_MESSAGE, MESSAGE, READY, REFUSED, REHEARSE, Block
from .waiter import Waiter

_MEMORY_CHECK = 50
"""Its memory is looked at between every so-manieth pair of ticks."""
_EXIT_NS = 200_000
"""A process's socket is closed so long, at most, before the kernel says how the process ended."""
_HURRIED_TICKS = 100
"""After so many ticks on end that left too little slack the process is started nevertheless."""
_MOST_MESSAGES = 16
"""So many messages are read at once; who sends more is not listened to all day."""
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessOptions:
    """How the policy's process is treated."""

    hung_ns: int = 500_000_000
    """Silent for so long, it is ended and replaced."""
    start_ns: int = 30_000_000_000
    """It must be ready so long after it was started."""
    start_slack_ns: int = 2_500_000
    """Starting a process takes a while: not with less than this left until the next tick, if it can be helped."""
    memory_bytes: int = 1 << 30
    """By so much it may grow."""
    most_wait_ns: int = 1_000_000_000
    """Longest wait for an answer where time is virtual and a policy cannot be late."""
    wait_for_start: bool = False
    """Between ticks, wait until it is ready: where time is virtual, it must not pass meanwhile."""


def _exit_of(pid: int) -> os.waitid_result | None:
    """Return how a child ended, and leave it to be collected; None if it has not (its socket may go just before it)."""
    until = time.perf_counter_ns() + _EXIT_NS
    while True:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None or time.perf_counter_ns() > until:
            return found


class PolicyProcess:
    """An :class:`~foreshare.policies.ask.Asker` whose policy lives elsewhere.

    ``policy``: {"registry": NAME} or {"factory": "package.module:callable"}; see :func:`.policy_worker.load`. Raises
    InputError where the policy cannot be loaded when the run begins; later, that is a fault like any other.
    """

    beside = True

    def __init__(self, policy: dict[str, str], host: Host, options: ProcessOptions | None = None) -> None:
        if host.batch:
            raise InputError("a policy in a process of its own decides about one host at a time")
        self.options = options or ProcessOptions()
        self.policy, self.starts = policy, 0
        """``starts``: how often a process was started."""
        self._host = host
        self._block = Block.make(host)
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._ended: list[subprocess.Popen[bytes]] = []
        self._ready = False
        self._sequence = self._started_ns = self._asked_ns = self._rests = 0
        self._asked: int | None = None
        """The tick whose answer has not come yet."""
        self._began_ns = self._hurried = 0
        self._fresh = False
        self._found: Answer | None = None
        self._lost: tuple[str, str] | None = None
        """A fault found between ticks, to be told in the next one."""
        self._memory_limit = 0

    # -- the process

    @property
    def pid(self) -> int | None:
        """The process that runs the policy; None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process and wait until it is ready. Raises InputError, with its reason, where it refuses."""
        self._launch()
        until = time.perf_counter_ns() + self.options.start_ns
        while not self._ready:
            waiter = self._waiter
            if self._process is None or not waiter.readable(until):
                why = self._lost[1] if self._lost else f"not ready in {self.options.start_ns / 1e9:g} s"
                self.close()
                raise InputError(f"policy {self._name}: {why}")
            self._drain()
        self._lost = None

    @property
    def _name(self) -> str:
        return next(iter(self.policy.values()))

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            theirs.set_inheritable(True)
            argv = [
                sys.executable, "-P", "-m", "foreshare.runtime.policy_worker", str(theirs.fileno()), str(os.getpid())
            ]  # fmt: skip
            # What it prints is nobody's: stdout belongs to whoever asked for JSON, stderr to the terminal's view. All
            # other descriptors are closed on exec, so none need be closed one by one.
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
                process_group=0, env=os.environ | _ONE_THREAD,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._sock, self._waiter = ours, Waiter(ours.fileno())
        self._ready, self._asked, self._memory_limit = False, None, 0
        self.starts += 1
        self._started_ns = time.perf_counter_ns()
        doc: dict[str, Any] = self.policy | {"memory_bytes": self.options.memory_bytes}
        ours.send(MESSAGE.pack(LOAD, 0, 0) + json.dumps(doc).encode())
        self._send_host()

    def _send_host(self) -> None:
        if self._sock is not None:
            self._ready = False
            message = MESSAGE.pack(HOST, self._block.host_bytes, 0)
            with suppress(OSError):  # it has ended, or does not read: both are seen when it is asked
                socket.send_fds(self._sock, [message], [self._block.fd])

    def _end_process(self) -> None:
        """Kill it and let go of it; it is collected between later ticks."""
        process, self._process = self._process, None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._ready, self._asked = False, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            self._ended.append(process)

    def _crash(self) -> None:
        """Note that it has ended by itself, and how."""
        why = "its process ended"
        if self._process is not None:
            found = _exit_of(self._process.pid)
            if found is not None and found.si_code != os.CLD_EXITED:
                why = f"its process was ended by {signal.Signals(found.si_status).name}"
            elif found is not None:
                why = f"its process ended with {found.si_status}"
        self._lost = self._lost or ("crashed" if self._ready else "unloadable", why)
        self._end_process()

    def _drain(self) -> None:
        """Read what has come, without waiting; where the process has ended or refused, that is noted as ``_lost``."""
        for _ in range(_MOST_MESSAGES):
            if self._sock is None:
                return
            try:
                data = self._sock.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # told before what it sent last; then comes the end
            except OSError:
                data = b""
            if not data:
                self._crash()
                return
            if len(data) < MESSAGE.size:
                continue
            kind, sequence, _ = MESSAGE.unpack_from(data)
            if kind == READY:
                self._ready = True
            elif kind == REFUSED:
                why = data[MESSAGE.size :].decode("utf-8", "replace")
                self._lose("unloadable", f"could not be loaded: {why}")
            elif kind == ANSWER and self._asked is not None and sequence == self._sequence:
                self._found, self._asked = self._take(self._asked), None

    def _silent(self) -> bool:
        """Return whether an answer is awaited; it may have come, or its process gone, since one last looked."""
        return self._asked is not None

    def _starting(self) -> bool:
        return not self._ready

    def _pick_up(self) -> Answer | None:
        found, self._found = self._found, None
        return found

    def _take(self, tick: int) -> Answer:
        """Return the answer in the block, which may hold anything."""
        sequence, _, fault, why, units, refused = self._block.answer()
        if sequence != self._sequence:
            return Answer(None, tick, "wrong", "its answer is to something else")
        if not fault:
            why = unusable(units, self._host)
            fault = "wrong" if why else ""
        return Answer(None if fault else units, tick, fault, why, refused=refused)

    # -- Asker

    def begin(self, request: Request, host: Host, tick: int) -> None:
        """See Asker. While an earlier request is unanswered no new one is put."""
        self._began_ns, self._fresh = time.perf_counter_ns(), False
        self._drain()
        if self._sock is None or not self._ready or self._asked is not None:
            return
        self._block.put_request(request, host.active)
        self._sequence += 1
        try:
            self._sock.send(MESSAGE.pack(ASK, self._sequence, tick))
        except OSError:
            return  # it has ended, which end() finds
        self._asked, self._fresh, self._asked_ns = tick, True, self._began_ns

    def arrived(self) -> bool:
        """See Asker."""
        return self._sock is not None and self._waiter.readable(0)

    def end(self, budget_ns: int, now_ns: Callable[[], int]) -> Answer:
        """See Asker. Time is the machine's own, whatever clock the caller keeps: the process lives by no other."""
        earlier = self._pick_up()
        if earlier is not None and earlier.fault:
            earlier = None
        if self._fresh and self._asked is not None:
            waiter = self._waiter
            until = self._began_ns + min(budget_ns, self.options.most_wait_ns)
            while self._silent() and waiter.readable(until):
                self._drain()
                if time.perf_counter_ns() > until:
                    break
            found = self._pick_up()
            if found is not None:
                return found
        lost = self._tell()
        if lost is not None:
            lost.earlier = earlier
            return lost
        if self._process is None or not self._ready:
            return Answer(None, -1, "starting", "its process is being started", earlier=earlier)
        silent_us = (time.perf_counter_ns() - self._asked_ns) // 1000
        return Answer(None, -1, "late", f"late: no answer in {silent_us} us", earlier=earlier)

    def rebind(self, host: Host) -> None:
        """See Asker. Who comes and goes is part of every request; a new table of VMs is a new block."""
        old, self._host = self._host, host
        if host.topology is old.topology and host.vms is old.vms:
            return
        self._block.close()
        self._block = Block.make(host)
        self._asked = self._found = None
        self._sequence += 1
        self._send_host()

    def warm_up(self, request: Request, host: Host) -> None:
        """See Asker: the process rehearses when it is given its host."""
        if self._process is None:
            self.start()

    def rehearse(self) -> None:
        """See Asker."""
        if self._sock is not None and self._ready and self._asked is None:
            with suppress(OSError):  # it has ended, or does not read: both are seen when it is asked
                self._sock.send(MESSAGE.pack(REHEARSE, 0, 0))

    def rest(self, slack_ns: int, wanted: bool) -> Answer | None:
        """See Asker."""
        self._rests += 1
        if self._ended:
            self._ended = [p for p in self._ended if p.poll() is None]
        if self.pid is None:
            self._hurried = self._hurried + 1 if slack_ns < self.options.start_slack_ns else 0
            if wanted and (not self._hurried or self._hurried > _HURRIED_TICKS):
                self._hurried = 0
                self._relaunch()
            return self._tell()
        now, options = time.perf_counter_ns(), self.options
        if not self._ready:
            self._drain()
            if now - self._started_ns > options.start_ns and self._starting():
                self._lose("unloadable", f"not ready in {options.start_ns / 1e9:g} s")
        elif self._asked is not None and now - self._asked_ns > options.hung_ns:
            self._drain()  # it may just have answered
            if self._silent():
                self._lose("hung", f"silent for {(now - self._asked_ns) / 1e6:.0f} ms")
        elif not self._memory_limit or self._rests % _MEMORY_CHECK == 0:
            self._check_memory()
        return self._tell()

    def _tell(self) -> Answer | None:
        lost, self._lost = self._lost, None
        return Answer(None, -1, *lost) if lost is not None else None

    def _lose(self, kind: str, why: str) -> None:
        self._end_process()
        self._lost = kind, why

    def _relaunch(self) -> None:
        try:
            self._launch()
        except OSError as error:
            self._end_process()
            self._lost = "unloadable", f"no process: {error.strerror}"
            return
        if self.options.wait_for_start:
            until = time.perf_counter_ns() + self.options.start_ns
            while not self._ready and self.pid is not None and self._waiter.readable(until):
                self._drain()

    def _check_memory(self) -> None:
        if self._process is None:
            return
        try:
            with open(f"/proc/{self._process.pid}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return  # it has just ended; the next tick finds out
        if not self._memory_limit:
            self._memory_limit = resident + self.options.memory_bytes
        elif resident > self._memory_limit:
            self._lose("leaked", f"grew to {resident >> 20} MiB")

    def close(self) -> None:
        """See Asker."""
        self._end_process()
        for process in self._ended:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        self._ended.clear()
        if self._block.fd >= 0:
            self._block.close()
            self._block.fd = -1
