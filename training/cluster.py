"""A Ray cluster for a while, and answers from it that are waited for aloud."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from foreshare.policies.errors import InputError

_log = logging.getLogger(__name__)
ATTEMPTS = 3
"""Ray gives its own processes 30 s to start, which a busy machine may not manage."""
PATIENCE_S = 30.0
"""So long nothing is said when the cluster has no CPU free."""


@contextmanager
def ray_session(address: str = "local", **own: Any) -> Iterator[None]:
    """Have Ray for a while: the cluster at ``address``, or one of this machine's own; one that there is already stays.

    An empty address: do without. ``own``: what else ``ray.init`` is told.
    Raises InputError where there is no cluster.
    """
    if not address:
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if address == "local":
        own["include_dashboard"] = False
    for attempt in range(ATTEMPTS):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            break
        except Exception as e:  # Ray raises all kinds, bare Exceptions where it was slow among them
            ray.shutdown()
            if attempt + 1 == ATTEMPTS or address != "local":
                raise InputError(f"no Ray cluster at {address!r}: {' '.join(str(e).split())[:160]}") from e
    try:
        yield
    finally:
        ray.shutdown()


def cpus() -> int:
    """Return how many whole CPUs the cluster has, busy or not; at least 1."""
    import ray

    resources: Any = ray.cluster_resources  # untyped there
    return max(int(resources().get("CPU", 0)), 1)


def answers(references: Sequence[Any], tell: Callable[[str], None] = _log.warning) -> list[Any]:
    """Return what the tasks return, in their order; says so when none ends for a while.

    ``ray.get`` alone waits for ever, and deaf to signals, for a CPU that the cluster does not have.
    """
    import ray

    resources: Any = ray.available_resources  # untyped there
    rest, waited = list(references), 0.0
    while rest:
        done, rest = ray.wait(rest, num_returns=len(rest), timeout=1.0)
        waited = 0.0 if done else waited + 1.0
        if waited and waited % PATIENCE_S == 0:
            free = resources().get("CPU", 0)
            tell(f"nothing from {len(rest)} tasks on Ray for {waited:.0f} s; CPUs free there: {free:g}")
    found: list[Any] = ray.get(list(references))
    return found
