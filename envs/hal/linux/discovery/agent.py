"""The process that talks to libvirt, one JSON line on stdout for each thing it has to say.

``{"started": true}`` first; ``{"alive": true}`` between calls, so that silence means that a call hangs; ``{"asking":
UUID}`` before it is asked to describe itself; ``{"domains": [...]}`` when they changed; ``{"error": "..."}`` once,
before it ends because libvirt is not there or went away.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from foreshare.policies.errors import ForeshareError

from .domains import bare_domain, described, to_json
from .libvirt_api import Connection, Handle
from .spec import Domain

WAKE_MS = 100
EVERY = 10
"""Without any event, domains are listed again once in so many wake-ups: what gains a vCPU tells no event."""


class Agent:
    """Lists domains and describes them, except those that were seen to hang."""

    def __init__(self, uri: str, mute: frozenset[str]) -> None:
        self._mute = mute
        self._poked = True
        self._known: dict[str, Domain] = {}
        self._told: list[dict[str, Any]] | None = None
        say({"started": True})
        self._connection = Connection(uri, self._poke, WAKE_MS)

    def _poke(self) -> None:
        self._poked = True

    def run(self) -> None:
        """Tell what happens. Raises HostError once libvirt is gone, BrokenPipeError once nobody listens."""
        rounds = 0
        while True:
            rounds += 1
            if self._poked or rounds % EVERY == 0:
                self._poked = False
                self._look()
            say({"alive": True})
            self._connection.run_once()

    def _look(self) -> None:
        """List, tell who runs, and only then ask each domain for the rest."""
        handles = self._connection.domains()
        listed = [(h, bare_domain(h.uuid, h.name, self._number(h))) for h in handles]
        now: dict[str, Domain] = {}
        for _, bare in listed:
            if bare is not None:
                known = self._known.get(bare.uuid)
                now[bare.uuid] = known if known is not None and known.number == bare.number else bare
        self._tell(now)
        for handle, bare in listed:
            if bare is not None and bare.uuid not in self._mute:
                say({"asking": bare.uuid})
                moving = bare.number >= 0 and handle.moving()
                now[bare.uuid] = dataclasses.replace(described(bare, handle.xml() or ""), moving=moving)
            handle.free()
        self._tell(now)

    def _number(self, handle: Handle) -> int:
        """Return the number of a domain's run, -1 until libvirt has set it up: the event that follows says so."""
        known = self._known.get(handle.uuid)
        if handle.number < 0 or handle.uuid in self._mute or (known is not None and known.number == handle.number):
            return handle.number
        say({"asking": handle.uuid})
        return -1 if handle.starting() else handle.number

    def _tell(self, now: dict[str, Domain]) -> None:
        self._known = now
        found = [to_json(now[uuid]) for uuid in sorted(now)]
        if found != self._told:
            self._told = found
            say({"domains": found})


def say(message: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(uri: str, *mute: str) -> int:
    """Run until stdout closes or libvirt does. ``mute``: UUIDs of domains that are not asked for their XML."""
    try:
        Agent(uri, frozenset(mute)).run()
    except ForeshareError as error:
        say({"error": str(error)})
    except BrokenPipeError:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
