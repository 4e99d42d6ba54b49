"""The process that talks to libvirt, one JSON line on stdout for each thing it has to say.

``{"alive": true}`` between calls, so that silence means that a call hangs; ``{"domains": [...]}`` when they changed;
``{"error": "..."}`` once, before it ends because libvirt is not there or went away.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from foreshare.policies.errors import ForeshareError

from .domains import parse_domain, to_json
from .libvirt_api import Connection

WAKE_MS = 100
EVERY = 10
"""Without any event, domains are listed again once in so many wake-ups: what gains a vCPU tells no event."""


def main(uri: str) -> int:
    """Tell what happens until stdout closes or libvirt does."""
    poked = True

    def poke() -> None:
        nonlocal poked
        poked = True

    told: list[dict[str, Any]] | None = None
    try:
        _say({"alive": True})
        connection = Connection(uri, poke, WAKE_MS)
        rounds = 0
        while True:
            rounds += 1
            if poked or rounds % EVERY == 0:
                poked = False
                found = [parse_domain(uuid, text) for uuid, text in connection.domains()]
                now = [to_json(domain) for domain in found if domain is not None]
                if now != told:
                    told = now
                    _say({"domains": now})
            _say({"alive": True})
            connection.run_once()
    except ForeshareError as error:
        _say({"error": str(error)})
        return 1
    except BrokenPipeError:
        return 0


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
