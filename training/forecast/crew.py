"""Where an LSTM's gradients come from: this process, or Ray actors, each with the recordings of some hosts.

The batches are the same either way, and so are the weights but for the order in which sums are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from foreshare.policies.forecast.history import Float32Array
from foreshare.training.cluster import answers, cpus, ray_session

from .dataset import Session
from .fit import FitOptions
from .sequences import Part, Rows, State

Ask = Callable[[str, State, Sequence[Rows]], list[Any]]
"""Calls a method of every part with the state and rows of its own."""


class Crew:
    """All parts as one: sequences are numbered through them."""

    def __init__(self, late: Sequence[np.ndarray[Any, np.dtype[np.bool_]]], ask: Ask) -> None:
        self.late = np.concatenate(late)
        """(M,) which sequences are for validation."""
        self._first = np.cumsum([0, *(len(x) for x in late)])
        self._ask = ask

    def _rows(self, rows: Rows) -> list[Rows]:
        first = self._first
        return [rows[(rows >= a) & (rows < b)] - a for a, b in pairwise(first)]

    def loss(self, state: State, rows: Rows) -> float:
        """Return the mean weighted loss of the sequences ``rows``."""
        sums = np.array(self._ask("loss", state, self._rows(rows)))
        return float(sums[:, 0].sum() / sums[:, 1].sum())

    def gradient(self, state: State, rows: Rows) -> tuple[list[Float32Array], float]:
        """Return the gradients of that loss, and the loss."""
        found = self._ask("gradient", state, self._rows(rows))
        over = np.float32(sum(f[2] for f in found))
        each = zip(*(f[0] for f in found), strict=True)
        gradients: list[Float32Array] = [np.asarray(np.sum(values, axis=0) / over, np.float32) for values in each]
        return gradients, float(sum(f[1] for f in found) / over)


@contextmanager
def crew(sessions: Sequence[Session], options: FitOptions, tell: Callable[[str], None]) -> Iterator[Crew]:
    """Have the parts for a while: no more actors than the cluster has CPUs, as one without a CPU would never begin.

    Raises InputError where there is no Ray cluster at the address named.
    """
    if not options.workers or not sessions:
        part = Part(sessions, options.split, options.without, options.hidden)
        yield Crew([part.late()], lambda method, state, rows: [getattr(part, method)(state, rows[0])])
        return
    with ray_session(options.ray_address):
        import ray

        there = cpus()
        count = min(options.workers, len(sessions), there)
        if count < options.workers:
            tell(f"{count} actors, not {options.workers}: {len(sessions)} recordings, {there} CPUs in the Ray cluster")
        longest = sorted(sessions, key=lambda s: -s.ticks * s.vms)
        actor: Any = ray.remote(num_cpus=1)(Part)
        parts: list[Any] = [
            actor.remote(longest[i::count], options.split, options.without, options.hidden) for i in range(count)
        ]

        def ask(method: str, state: State, rows: Sequence[Rows]) -> list[Any]:
            shared = ray.put(list(state))
            return answers([getattr(p, method).remote(shared, own) for p, own in zip(parts, rows, strict=True)], tell)

        yield Crew(answers([p.late.remote() for p in parts], tell), ask)
