"""What passes between the loop and a policy's process: one block of shared memory, and short messages over a socket.

The block is a memfd, passed by descriptor: it has no name, so that nothing is left behind whoever is killed when, and
it is sealed against shrinking, so that the other side cannot take pages away. It holds the host as JSON, a request and
an answer; nothing that is executed passes in either direction. At most one request is under way, so that neither side
writes what the other reads.

Messages (SOCK_SEQPACKET, little-endian): a kind, a sequence number and a tick. The kernel tells each side at once when
the other one ends.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.allocators import Request
from foreshare.policies.host import BoolArray, FloatArray, Host, Pool, R, Resource, Topology, VmTable

MESSAGE = struct.Struct("<cqq")
LOAD, READY, REFUSED, HOST, ASK, ANSWER = b"P", b"R", b"X", b"H", b"T", b"A"
"""Load a policy (JSON follows); it is loaded; it could not be (text follows); a host (descriptor comes along); a
request; an answer."""
TEXT_BYTES = 512
MAX_MESSAGE = 1 << 16
_ANSWER = struct.Struct("<qqqqq")
"""Sequence number, tick, fault (index into FAULTS_ON_WIRE), whether values are floats, whether ``refused`` is told."""
FAULTS_ON_WIRE = ("", "raised", "wrong")
_ALIGN = 64

_TOPOLOGY_NUMBERS = ("units_per_cpu", "ways", "way_bits", "shared_ways", "min_ways", "max_classes")
_VM_ARRAYS = ("priority", "isolation", "zone", "reservation", "cap")


def host_to_json(host: Host) -> bytes:
    """Return a host (no batch) as JSON."""
    t, v = host.topology, host.vms
    doc = {
        "topology": {name: getattr(t, name).tolist() for name in ("cpu_id", "core", "zone")}
        | {name: getattr(t, name) for name in _TOPOLOGY_NUMBERS},
        "pools": [[int(p.resource), p.zone, p.units, p.unit, p.unit_size, p.measure] for p in t.pools],
        "vms": {"uuid": v.uuid, "name": v.name, "target_ms": v.target_ms.tolist()}
        | {name: getattr(v, name).tolist() for name in _VM_ARRAYS},
        "active": host.active.tolist(),
    }
    return json.dumps(doc).encode()


def host_from_json(text: bytes) -> Host:
    """Return the host that :func:`host_to_json` wrote."""
    doc = json.loads(text)
    t, v, n = doc["topology"], doc["vms"], len(doc["vms"]["uuid"])
    pools = tuple(
        Pool(resource=Resource(r), zone=z, units=units, unit=unit, unit_size=size, measure=measure)
        for r, z, units, unit, size, measure in doc["pools"]
    )
    parts: dict[str, Any] = {k: np.array(t[k], np.int64) for k in ("cpu_id", "core", "zone")}
    topology = Topology(pools=pools, **parts, **{k: t[k] for k in _TOPOLOGY_NUMBERS})
    shape: Mapping[str, tuple[int, ...]] = {"reservation": (n, R), "cap": (n, R)}
    arrays: dict[str, Any] = {k: np.array(v[k], np.int64).reshape(shape.get(k, (n,))) for k in _VM_ARRAYS}
    target_ms = np.array(v["target_ms"], np.float64).reshape(n)
    vms = VmTable(uuid=tuple(v["uuid"]), name=tuple(v["name"]), target_ms=target_ms, **arrays)
    return Host(topology, vms, np.array(doc["active"], bool))


@dataclass(slots=True, eq=False)
class Block:
    """The shared memory of one host, seen from either side."""

    fd: int
    memory: mmap.mmap
    host_bytes: int
    request: Request
    active: BoolArray
    values: FloatArray
    """(N, R) the answer, read as floats or as integers."""
    refused: npt.NDArray[np.uint8]
    _answer_at: int
    _text_at: int

    @classmethod
    def make(cls, host: Host) -> Block:
        """Return a new block that holds ``host``."""
        text = host_to_json(host)
        size = _layout(len(text), len(host))[-1]
        fd = os.memfd_create("foreshare-policy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            block = cls._map(fd, len(text), len(host))
        except BaseException:
            os.close(fd)
            raise
        block.memory[: len(text)] = text
        block.active[:] = host.active
        return block

    @classmethod
    def open(cls, fd: int, host_bytes: int) -> tuple[Block, Host]:
        """Return the block behind a descriptor that came over the socket, and the host in it."""
        with mmap.mmap(fd, 0) as whole:
            host = host_from_json(whole[:host_bytes])
        return cls._map(fd, host_bytes, len(host)), host

    @classmethod
    def _map(cls, fd: int, host_bytes: int, n: int) -> Block:
        at = _layout(host_bytes, n)
        memory = mmap.mmap(fd, at[-1])

        def array(offset: int, *shape: int, dtype: Any = np.float64) -> npt.NDArray[Any]:
            return np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)

        ask, need, usage, backlog = (array(at[i], n, R) for i in range(4))
        request = Request(ask, need, usage, backlog, array(at[4], n))
        return cls(
            fd, memory, host_bytes, request, array(at[5], n, dtype=np.bool_), array(at[6], n, R),
            array(at[7], n, dtype=np.uint8), at[8], at[8] + _ALIGN,
        )  # fmt: skip

    def put_request(self, request: Request, active: BoolArray) -> None:
        """Write a request."""
        mine = self.request
        mine.ask[:], mine.need[:], mine.usage[:] = request.ask, request.need, request.usage
        mine.backlog[:], mine.delay_ticks[:] = request.backlog, request.delay_ticks
        self.active[:] = active

    def put_answer(
        self, sequence: int, tick: int, fault: str, text: str, units: Any, refused: BoolArray | None
    ) -> None:
        """Write an answer: units (N, R) of any numeric type, or a fault with its text."""
        floats = False
        if units is not None:
            floats = units.dtype.kind == "f"
            self.values.view(np.float64 if floats else np.int64)[:] = units
        if refused is not None:
            self.refused[:] = refused
        _ANSWER.pack_into(
            self.memory, self._answer_at, sequence, tick, FAULTS_ON_WIRE.index(fault), floats, refused is not None
        )
        raw = text.encode("utf-8", "replace")[: TEXT_BYTES - 1]
        self.memory[self._text_at : self._text_at + len(raw) + 1] = raw + b"\0"

    def answer(self) -> tuple[int, int, str, str, npt.NDArray[Any], BoolArray | None]:
        """Return a copy of the answer: sequence number, tick, fault, text, units and who was refused.

        Whatever stands there: the other side may have written anything.
        """
        sequence, tick, fault, floats, told = _ANSWER.unpack_from(self.memory, self._answer_at)
        name = FAULTS_ON_WIRE[fault] if 0 <= fault < len(FAULTS_ON_WIRE) else "wrong"
        text = ""
        if fault:
            raw = self.memory[self._text_at : self._text_at + TEXT_BYTES]
            text = raw.partition(b"\0")[0].decode("utf-8", "replace")
        units = np.array(self.values if floats else self.values.view(np.int64))
        return sequence, tick, name, text, units, (self.refused != 0) if told else None

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last array that looks at it."""
        os.close(self.fd)


def _layout(host_bytes: int, n: int) -> list[int]:
    """Return where things stand: four (N, R) arrays, delays, active, values, refused, the answer, and the end."""
    sizes = [*[8 * n * R] * 4, 8 * n, n, 8 * n * R, n, _ALIGN + TEXT_BYTES]
    at, out = host_bytes, []
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        out.append(at)
        at += size
    return [*out, at]
