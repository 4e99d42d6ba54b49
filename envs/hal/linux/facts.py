"""Slower facts about a VM that no tick needs: for doctor and for recordings."""

from __future__ import annotations

from foreshare.policies.errors import HostError

from .cgroups import Cgroup, Hierarchies
from .controls import VmControls, field_after
from .threads import VmThreads


def vm_facts(vm: VmControls, threads: VmThreads, hierarchies: Hierarchies) -> dict[str, object]:
    """Return what can be told about a VM; a key is missing where the host does not tell. JSON values only.

    ``memory_bytes`` in use; ``memory_node_bytes`` by NUMA node; ``cpu_pressure_us`` and ``io_pressure_us``: time in
    which at least one thread was stalled since the cgroup was made (PSI "some",
    https://docs.kernel.org/accounting/psi.html); ``stray_threads`` that affinity could not confine yet.
    """
    out: dict[str, object] = {"cgroup": vm.cgroup, "threads": len(threads.threads)}
    if threads.stray:
        out["stray_threads"] = len(threads.stray)
    for name, key in (("cpu.pressure", "cpu_pressure_us"), ("io.pressure", "io_pressure_us")):
        data = _read(vm.cpu if hierarchies.of("cpu").version == 2 else None, name) or _unified(vm, name, hierarchies)
        if data is not None and (total := field_after(data, b" total=")) >= 0:
            out[key] = total
    try:
        memory = Cgroup.open(hierarchies.of("memory"), vm.cgroup)
    except HostError:
        return out
    try:
        one = memory.mount.version == 1
        used = memory.read("memory.usage_in_bytes" if one else "memory.current")
        if used is not None:
            out["memory_bytes"] = int(used)
        nodes = node_bytes(memory.read("memory.numa_stat") or b"", one=one)
        if nodes:
            out["memory_node_bytes"] = nodes
    finally:
        memory.close()
    return out


def _read(group: Cgroup | None, name: str) -> bytes | None:
    return group.read(name) if group is not None else None


def _unified(vm: VmControls, name: str, hierarchies: Hierarchies) -> bytes | None:
    if hierarchies.unified is None:
        return None
    try:
        group = Cgroup.open(hierarchies.unified, vm.cgroup)
    except HostError:
        return None
    try:
        return group.read(name)
    finally:
        group.close()


def node_bytes(data: bytes, *, one: bool) -> dict[str, int]:
    """Return bytes by node: v1 counts pages ("total=9 N0=9"), v2 bytes ("anon N0=.." and "file N0=.."), summed here."""
    out: dict[str, int] = {}
    for line in data.decode("ascii", "replace").splitlines():
        words = line.split()
        wanted = line.startswith("hierarchical_total=") if one else words[:1] in (["anon"], ["file"])
        for word in words[1:] if wanted else ():
            node, _, value = word.partition("=")
            if node[:1] == "N" and value.isdigit():
                out[node[1:]] = out.get(node[1:], 0) + int(value) * (4096 if one else 1)
    return out
