"""Keeps an eye on where VMs live, in a thread of its own; a tick only looks at :attr:`Watch.found`.

libvirt is asked by a process that can be killed (:mod:`.agent`): one that is silent for longer than the timeout hangs
in a call. After a failure the next try waits, twice as long each time (a circuit breaker); meanwhile what was known
stays known, and VMs are followed by their cgroups.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

from foreshare.envs.hal.linux.roots import Roots
from foreshare.policies.errors import ForeshareError

from .domains import from_json
from .homes import Homes
from .spec import DiscoverySpec, Domain, Found

PERIOD_S = 0.02
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
START_S = 10.0
"""Allowed to the process before its first word, beyond the timeout: a busy host is slow to start one."""
_MOST_BYTES = 64 << 20


class Watch:
    """Starts to look at once; :meth:`close` ends it."""

    def __init__(self, spec: DiscoverySpec, roots: Roots) -> None:
        self._spec, self._homes = spec, Homes(roots)
        self.found = Found()
        """Replaced as a whole when something changes."""
        self.failures = 0
        """Times that libvirt did not answer, in a row; 0 once it does."""
        self._agent: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._heard = self._again = 0.0
        self._domains: tuple[Domain, ...] = ()
        self._trouble = ""
        self._said = ""
        """What the agent gave as its reason to end."""
        self._asked = ""
        """The domain that is being asked for its XML."""
        self._mute: set[str] = set()
        """Domains that did not answer, and are not asked for now."""
        self._unmute = 0.0
        self._answered = not spec.libvirt
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="foreshare-discovery", daemon=True)
        self._thread.start()

    def first(self) -> Found:
        """Return what is found once everybody has been asked, or the time for that is over."""
        until = time.monotonic() + self._spec.timeout_ms * 1e-3 + START_S
        while not self.found.asked and time.monotonic() < until:
            time.sleep(0.005)
        return self.found

    def close(self) -> None:
        """End the thread and the process."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._listen()
                except (OSError, ValueError, KeyError, TypeError) as error:  # no line of ours, or no process to be had
                    self._failed(f"{type(error).__name__}: {error}")
                try:
                    self._publish()
                except (OSError, ForeshareError) as error:  # the cgroups are being taken apart: the next look says more
                    self._trouble = str(error)
                    self._stop.wait(PERIOD_S)
        finally:
            self._end_agent()

    def _listen(self) -> None:
        """Wait for the agent, at most for a period; start and end it as needed."""
        now = time.monotonic()
        if self._agent is None and self._spec.libvirt and now >= self._again:
            self._start_agent(now)
        pipe = self._agent.stdout if self._agent is not None else None
        if pipe is None:
            self._stop.wait(PERIOD_S)
            return
        ready, _, _ = select.select([pipe], [], [], PERIOD_S)
        if ready:
            data = os.read(pipe.fileno(), 1 << 20)
            if not data or len(self._buffer) > _MOST_BYTES:
                self._failed(self._said or "the process that asks libvirt ended")
                return
            self._heard = time.monotonic()
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        elif time.monotonic() > self._heard + self._spec.timeout_ms * 1e-3:
            self._failed(f"libvirt did not answer within {self._spec.timeout_ms:g} ms")

    def _take(self, message: dict[str, Any]) -> None:
        if "error" in message:
            self._said = str(message["error"])
            return
        if "asking" in message:
            self._asked = str(message["asking"])
        elif "domains" in message:
            self._domains = tuple(from_json(d) for d in message["domains"])
        elif "alive" in message:  # whoever was asked has answered
            self._answered, self.failures, self._trouble, self._asked = True, 0, "", ""

    def _start_agent(self, now: float) -> None:
        self._buffer, self._heard, self._said, self._asked = b"", now + START_S, "", ""
        if now >= self._unmute:
            self._mute.clear()
            self._unmute = now + LONGEST_WAIT_S
        self._agent = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.agent", self._spec.libvirt, *sorted(self._mute)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _failed(self, why: str) -> None:
        if self._asked:  # the others need not suffer from one domain that hangs: its name and number are known
            self._mute.add(self._asked)
        self._end_agent()
        self._trouble, self._answered = why, True
        self._again = time.monotonic() + min(FIRST_WAIT_S * 2**self.failures, LONGEST_WAIT_S)
        self.failures += 1

    def _end_agent(self) -> None:
        if self._agent is None:
            return
        self._agent.kill()  # it holds nothing: a hung call could not be ended otherwise
        if self._agent.stdout is not None:
            self._agent.stdout.close()
        self._agent.wait()
        self._agent = None

    def _publish(self) -> None:
        homes, _ = self._homes.of_domains(self._domains)
        if self._spec.processes:
            managed = {d.uuid for d in self._domains}
            homes |= {u: home for u, home in self._homes.of_processes().items() if u not in managed}
        was = self.found
        now = (homes, self._domains, self._trouble, self._answered)
        if now != (was.homes, was.domains, was.trouble, was.asked):
            self.found = Found(was.version + 1, *now)
