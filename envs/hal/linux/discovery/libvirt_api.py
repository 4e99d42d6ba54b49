"""The few functions of libvirt that are needed, by ctypes: no module to build, no version to match.

Reference: https://libvirt.org/html/libvirt-libvirt-domain.html and -libvirt-event.html. Everything here may block for
as long as libvirtd likes, so it is only ever called in a process that can be killed (:mod:`.agent`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from foreshare.policies.errors import HostError

_LIBRARY = "libvirt.so.0"
_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_EVENT = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _INT, _INT, _POINTER)
_TIMER = ctypes.CFUNCTYPE(None, _INT, _POINTER)
_LIFECYCLE, _DEVICE_REMOVED, _DEVICE_ADDED = 0, 15, 19
"""virDomainEventID."""
_UUID_LENGTH = 37  # VIR_UUID_STRING_BUFLEN
_NO_ID = 0xFFFFFFFF
_STARTING_UP = (3, 11)
"""VIR_DOMAIN_PAUSED with VIR_DOMAIN_PAUSED_STARTING_UP."""
_MIGRATING = (3, 2)
"""VIR_DOMAIN_PAUSED with VIR_DOMAIN_PAUSED_MIGRATION."""
_AT_WORK = (1, 2)
"""virDomainJobType: bounded and unbounded."""
_JOB_WORDS = 16
"""More than virDomainJobInfo has: an int and eleven numbers of 64 bits."""
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "virInitialize": (_INT, ()),
    "virEventRegisterDefaultImpl": (_INT, ()),
    "virEventRunDefaultImpl": (_INT, ()),
    "virEventAddTimeout": (_INT, (_INT, _TIMER, _POINTER, _POINTER)),
    "virConnectOpenReadOnly": (_POINTER, (_TEXT,)),
    "virConnectIsAlive": (_INT, (_POINTER,)),
    "virConnectSetKeepAlive": (_INT, (_POINTER, _INT, ctypes.c_uint)),
    "virConnectDomainEventRegisterAny": (_INT, (_POINTER, _POINTER, _INT, _EVENT, _POINTER, _POINTER)),
    "virConnectListAllDomains": (_INT, (_POINTER, ctypes.POINTER(ctypes.POINTER(_POINTER)), ctypes.c_uint)),
    "virDomainGetID": (ctypes.c_uint, (_POINTER,)),
    "virDomainGetName": (_TEXT, (_POINTER,)),
    "virDomainGetUUIDString": (_INT, (_POINTER, _TEXT)),
    "virDomainGetState": (_INT, (_POINTER, ctypes.POINTER(_INT), ctypes.POINTER(_INT), ctypes.c_uint)),
    "virDomainGetJobInfo": (_INT, (_POINTER, _POINTER)),
    "virDomainGetXMLDesc": (_POINTER, (_POINTER, ctypes.c_uint)),
    "virDomainFree": (_INT, (_POINTER,)),
    "virGetLastErrorMessage": (_TEXT, ()),
    "virSetErrorFunc": (None, (_POINTER, _POINTER)),
}


class Connection:
    """A read-only connection with events. Raises HostError where there is no libvirt or it refuses."""

    def __init__(self, uri: str, poke: Callable[[], None], wake_ms: int) -> None:
        """``poke`` is called within :meth:`run_once` when a domain starts, stops, or gains or loses a device.

        ``wake_ms``: :meth:`run_once` returns at least so often.
        """
        try:
            self._lib = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise HostError(f"{_LIBRARY} is not installed (Debian: libvirt0)") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, list(arguments)
        self._libc = ctypes.CDLL(None)
        self._libc.free.argtypes = [_POINTER]
        self._silence = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)(lambda data, error: None)
        self._lib.virSetErrorFunc(None, ctypes.cast(self._silence, _POINTER))  # else it prints to stderr
        if self._lib.virInitialize() < 0 or self._lib.virEventRegisterDefaultImpl() < 0:
            raise HostError(f"libvirt does not start: {self._last()}")
        self._handle = self._lib.virConnectOpenReadOnly(uri.encode())
        if not self._handle:
            raise HostError(f"libvirt at {uri}: {self._last()}")
        self._lib.virConnectSetKeepAlive(self._handle, 1, 3)  # drivers without a wire have none
        # Events of other kinds pass other arguments behind these; none of them is looked at.
        self._on_event = _EVENT(lambda connection, domain, a, b, opaque: poke())
        self._on_timer = _TIMER(lambda timer, opaque: None)
        self._lib.virEventAddTimeout(wake_ms, self._on_timer, None, None)
        for kind in (_LIFECYCLE, _DEVICE_ADDED, _DEVICE_REMOVED):
            if self._lib.virConnectDomainEventRegisterAny(self._handle, None, kind, self._on_event, None, None) < 0:
                raise HostError(f"libvirt at {uri} tells no events: {self._last()}")

    def run_once(self) -> None:
        """Wait for an event or the wake-up, and call back. Raises HostError where the connection is gone."""
        if self._lib.virEventRunDefaultImpl() < 0 or self._lib.virConnectIsAlive(self._handle) != 1:
            raise HostError(f"the connection to libvirt broke: {self._last()}")

    def domains(self) -> list[Handle]:
        """Return every domain, running or not; :meth:`Handle.free` each. Raises HostError."""
        found = ctypes.POINTER(_POINTER)()
        count = self._lib.virConnectListAllDomains(self._handle, ctypes.byref(found), 0)
        if count < 0:
            raise HostError(f"libvirt does not list its domains: {self._last()}")
        try:
            return [Handle(self._lib, self._libc, found[i]) for i in range(count)]
        finally:
            self._libc.free(ctypes.cast(found, _POINTER))

    def _last(self) -> str:
        said = self._lib.virGetLastErrorMessage()
        return " ".join((said or b"no reason given").decode("utf-8", "replace").split())[:300]


class Handle:
    """One domain. What it is called and its number were in the list; the methods have to ask, and may hang."""

    def __init__(self, lib: ctypes.CDLL, libc: ctypes.CDLL, handle: int | None) -> None:
        self._lib, self._libc, self._handle = lib, libc, handle
        buffer = ctypes.create_string_buffer(_UUID_LENGTH)
        lib.virDomainGetUUIDString(handle, buffer)
        self.uuid = buffer.value.decode("ascii", "replace").lower()
        self.name = (lib.virDomainGetName(handle) or b"").decode("utf-8", "replace")
        number = lib.virDomainGetID(handle)
        self.number = -1 if number == _NO_ID else int(number)

    def starting(self) -> bool:
        """Return whether libvirt is still busy starting it: its cgroups are there, but not as they will be."""
        state, reason = _INT(), _INT()
        failed = self._lib.virDomainGetState(self._handle, ctypes.byref(state), ctypes.byref(reason), 0) < 0
        return not failed and (state.value, reason.value) == _STARTING_UP

    def moving(self) -> bool:
        """Return whether a job is at work on it: it migrates, is being saved or dumped."""
        info = (ctypes.c_ulonglong * _JOB_WORDS)()
        failed = self._lib.virDomainGetJobInfo(self._handle, ctypes.byref(info)) < 0
        state, reason = _INT(), _INT()
        unknown = self._lib.virDomainGetState(self._handle, ctypes.byref(state), ctypes.byref(reason), 0) < 0
        paused = not unknown and (state.value, reason.value) == _MIGRATING
        return paused or (not failed and ctypes.cast(info, ctypes.POINTER(_INT))[0] in _AT_WORK)

    def xml(self) -> str | None:
        """Return the domain's XML; None where it went away meanwhile."""
        text = self._lib.virDomainGetXMLDesc(self._handle, 0)
        if not text:
            return None
        try:
            return ctypes.string_at(text).decode("utf-8", "replace")
        finally:
            self._libc.free(text)

    def free(self) -> None:
        """Let go of it."""
        self._lib.virDomainFree(self._handle)
