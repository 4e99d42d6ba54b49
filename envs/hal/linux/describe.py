"""Planned writes to cgroups in words, for dry runs."""

from __future__ import annotations

from foreshare.envs.hal.types import Control, Plan

from .controls import VmControls
from .cpulist import CpuLists
from .threads import VmThreads
from .topology import IO_UNITS

_WORDS = {Control.WAYS: "cache ways", Control.MEMORY: "memory bandwidth"}


def describe_writes(
    plan: Plan, root: str, vms: list[VmControls], threads: list[VmThreads], lists: CpuLists,
    quotas: list[list[bytes]], io_writes: list[list[tuple[int, list[bytes]]]],
) -> list[str]:  # fmt: skip
    """Return one line for each write, with paths below ``root``. ``quotas`` and ``io_writes``: payloads by units."""
    lines: list[str] = []
    for control, row, value in zip(plan.control.tolist(), plan.vm.tolist(), plan.value.tolist(), strict=True):
        vm = vms[row]
        parts: list[str] = []
        if control == Control.CPU:
            data = quotas[row][min(max(value, 0), len(quotas[row]) - 1)]
            parts.append(f"write {_text(data)} to {_below(root, vm.quota.path)}")
        elif control == Control.CPUS:
            text = _text(lists.payload(plan.cpu_sets[value].tobytes()))
            parts += [f"write {text} to {_below(root, knob.path)}" for knob in vm.cpuset]
            if not vm.cpuset:
                many = len(threads[row].threads)
                parts.append(f"set the affinity of {many} threads of {vm.cgroup} to {text}")
        elif control == Control.IO:
            parts += [
                f"write {_text(table[min(max(value, 0), IO_UNITS)])} to {_below(root, knob.path)}"
                for (knob, _), (_, table) in zip(vm.io, io_writes[row], strict=True)
            ]
        what = _WORDS.get(Control(control), "IO")
        lines.append(", ".join(parts) or f"nothing: {what} of {vm.cgroup} cannot move here")
    return lines


def _text(data: bytes) -> str:
    return data.decode().strip() or "nothing"


def _below(root: str, path: str) -> str:
    return path.removeprefix(root).lstrip("/")
