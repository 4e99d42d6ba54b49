"""Planned writes to resctrl in words, for dry runs."""

from __future__ import annotations

import numpy as np

from foreshare.envs.hal.types import Control, Plan

from .partitions import Partitions


def describe(parts: Partitions, plan: Plan, lines: list[str]) -> list[str]:
    """Return ``lines``, one for each write of ``plan``, with those in place that move ways or memory bandwidth."""
    entries = zip(plan.control.tolist(), plan.vm.tolist(), plan.value.tolist(), lines, strict=True)
    moved = (Control.WAYS, Control.MEMORY)
    return [(control in moved and _write(parts, control, row, value)) or line for control, row, value, line in entries]


def _write(parts: Partitions, control: int, row: int, value: int) -> str:
    """Return what one write of a plan comes to; empty where that resource does not move here."""
    offer, state = parts.offer, parts.state
    name = parts.named[int(state.group[row])][0]
    home = np.flatnonzero(offer.domain_zone == parts.table.zone[row])
    ids = offer.domain_id[home].tolist()
    if control == Control.WAYS:
        mask = f"{offer.kernel_mask(value):x}" if value else "the shared ways"
        return f"write L3:{_each(ids, [mask] * len(ids))} to resctrl {name}/schemata" if offer.ways else ""
    if not offer.memory_units:
        return ""
    units = state.memory.copy()
    units[row] = value
    alone = np.arange(len(units)) == row
    values = state.bandwidth.values(units, state.group, alone, len(parts.groups), state.live)
    told = values[int(state.group[row]), home].tolist()
    return f"write MB:{_each(ids, told)} to resctrl {name}/schemata"


def _each(ids: list[int], values: list[object]) -> str:
    return ";".join(f"{d}={v}" for d, v in zip(ids, values, strict=True))
