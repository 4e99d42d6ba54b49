"""A policy's own process: loads it by name, answers requests in shared memory, and ends when its parent does.

Started as ``python -P -m foreshare.runtime.policy_worker FD PARENT``; see :mod:`.policy_process`.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

import numpy as np

from foreshare.policies.allocators import Allocator, Request
from foreshare.policies.ask import call
from foreshare.policies.host import Host

from .policy_wire import ANSWER, ASK, HOST, LOAD, MAX_MESSAGE, MESSAGE, READY, REFUSED, REHEARSE, Block

_PR_SET_PDEATHSIG = 1
_COLLECT = 500
_MOST_FILES = 256


def load(doc: dict[str, Any]) -> Allocator:
    """Return the policy that ``doc`` names: {"registry": NAME} or {"factory": "package.module:callable"}."""
    if "registry" in doc:
        from foreshare.policies.registry import POLICIES

        return POLICIES[doc["registry"]][1]()
    module, _, name = doc["factory"].partition(":")
    policy: Allocator = getattr(importlib.import_module(module), name)()
    if not callable(getattr(policy, "allocate", None)):
        raise TypeError(f"{doc['factory']} makes a {type(policy).__name__}, which has no allocate()")
    return policy


class Worker:
    """Serves one parent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._policy: Allocator | None = None
        self._double: Allocator | None = None
        self._block: Block | None = None
        self._host: Host | None = None
        self._served = 0

    def serve(self) -> None:
        """Answer until the parent hangs up."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 1)
            if not data:
                return
            kind, sequence, tick = MESSAGE.unpack_from(data)
            if kind == ASK:
                self._answer(sequence, tick)
            elif kind == REHEARSE:
                self._rehearse(tick)
            elif kind == HOST:
                self._bind(fds[0], sequence)
            elif kind == LOAD:
                self._load(json.loads(data[MESSAGE.size :]))

    def _load(self, doc: dict[str, Any]) -> None:
        try:
            self._policy = load(doc)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in: the parent is told, and decides
            text = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:1000]
            self._sock.send(MESSAGE.pack(REFUSED, 0, 0) + text)
            raise SystemExit(1) from None
        _limit_memory(int(doc["memory_bytes"]))

    def _bind(self, fd: int, host_bytes: int) -> None:
        """Take over a new host, rehearse on it, and say that we are ready."""
        old = self._block
        self._block, self._host = Block.open(fd, host_bytes)
        if old is not None:
            old.close()
        if self._policy is not None:
            self._double = copy.deepcopy(self._policy)
            for _ in range(3):
                call(self._double, Request.empty(len(self._host)), self._host, 0)
        gc.collect()
        gc.freeze()
        gc.disable()
        self._sock.send(MESSAGE.pack(READY, 0, 0))

    def _rehearse(self, tick: int) -> None:
        """Have the policy's double judge whatever stands in the block: its answer is dropped, the caches are warm."""
        if self._block is not None and self._host is not None and self._double is not None:
            call(self._double, self._block.request.read_only(), self._host, tick)

    def _answer(self, sequence: int, tick: int) -> None:
        block, host, policy = self._block, self._host, self._policy
        if block is None or host is None or policy is None:
            return
        if (block.active != host.active).any():
            host = self._host = Host(host.topology, host.vms, block.active.copy())
        answer = call(policy, block.request.read_only(), host, tick)
        refused = answer.refused if answer.refused is not None and answer.refused.shape == (len(host),) else None
        block.put_answer(sequence, tick, answer.fault, answer.why, answer.units, refused)
        self._sock.send(MESSAGE.pack(ANSWER, sequence, tick))
        self._served += 1
        if self._served % _COLLECT == 0:
            gc.collect(1)


def _limit_memory(extra_bytes: int) -> None:
    """Let private memory grow by ``extra_bytes`` and no further: then allocations fail here, not on the host."""
    with open("/proc/self/statm", encoding="ascii") as file:
        data_bytes = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + extra_bytes, resource.RLIM_INFINITY))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before we asked
        raise SystemExit(0)


def main() -> int:
    """Serve the parent whose socket is the first argument and whose process id is the second."""
    die_with_parent(int(sys.argv[2]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MOST_FILES, soft), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # dumping core takes seconds and is nobody's wish here
    np.seterr(all="ignore")
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        try:
            Worker(sock).serve()
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
