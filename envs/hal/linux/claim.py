"""Taking hold of the VMs' controls: what must be remembered before the first write, and the first writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from foreshare.policies.errors import HostError
from foreshare.policies.host import Isolation, Resource, VmTable

from . import cookies, cpulist
from .cgroups import GONE, Cgroup
from .controls import (
    IO_V2,
    NO_LIMIT,
    PERIOD_V1,
    QUOTA_V1,
    QUOTA_V2,
    READ_V1,
    WRITE_V1,
    VmControls,
    parse_io_limit,
    parse_quota,
    write_cpus,
)  # fmt: skip
from .cpu_partitions import FILE as PARTITION_FILE
from .memory_nodes import MemoryNodes, bind_memory
from .restore import KIND, VERSION, boot_id, burst_file, items_of, put_bandwidth, put_weight, weight_file
from .roots import Roots, read_text
from .threads import VmThreads
from .topology import MIN_QUOTA_US, CpuLayout

WEIGHT_PER_CPU = 100
"""Weight of one reserved CPU in cgroup v2, whose default is 100; v1 counts 1024 for the same."""
_MAX_WEIGHT = 10_000


@dataclass(frozen=True, slots=True)
class Held:
    """All that a claim takes hold of."""

    controls: list[VmControls]
    threads: list[VmThreads]
    table: VmTable
    layout: CpuLayout
    devices: list[str]
    period_us: int
    cookies: bool = False
    """Whether VMs that are not shared get core-scheduling cookies."""
    memory_nodes: MemoryNodes = "off"
    """Whether their memory is bound to their zone's node."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one VM has that stays as it is while we hold it."""

    weight: int
    idle: int | None
    """None: the kernel has no cpu.idle."""
    why_not_bound: str
    """Why its memory is not bound to its node, empty where it is or need not be."""


def collect(held: Held, roots: Roots) -> dict[str, Any]:
    """Return the document that :func:`~foreshare.envs.hal.linux.restore.restore` puts back, JSON values only.

    Raises HostError where something that would be written cannot be read.
    """
    items: list[dict[str, Any]] = []
    for row, (vm, threads) in enumerate(zip(held.controls, held.threads, strict=True)):
        if vm.absent:
            continue
        if held.cookies and held.table.isolation[row] != Isolation.SHARED and not _has_cookie(threads):
            items.append({"what": "cookie", "cgroup": vm.cgroup, "inode": vm.cpu.inode})
        for group in vm.cpu.walk():
            bandwidth = _bandwidth(group)
            if group is vm.cpu:
                idle = group.read("cpu.idle")
                items += [
                    bandwidth,
                    {"what": "weight", "cgroup": group.path, "inode": group.inode,
                     "weight": int(_must(group, weight_file(group))), "idle": None if idle is None else int(idle)},
                    *_burst(group),
                ]  # fmt: skip
                continue
            # v1 refuses a quota below a child's, so children's are lifted while we hold the VM. v2 does not mind.
            if group.mount.version == 1 and bandwidth["quota"] != NO_LIMIT:
                items.append(bandwidth)
            group.close()
        if vm.cpuset:
            tree = [
                [g.path, g.inode, *(_must(g, name).decode().strip() for name in ("cpuset.cpus", "cpuset.mems"))]
                for g in vm.cpuset_tree
            ]
            items += _partition(vm.cpuset_tree[0])
            items.append({"what": "cpuset", "cgroup": vm.cgroup, "tree": tree})
        if vm.io_group is not None:
            items += [_io(vm.io_group, device) for device in held.devices]
        items += _affinity(vm, threads, held.layout, roots)
    return {"kind": KIND, "version": VERSION, "boot_id": boot_id(roots), "items": items}


def adopt(
    found: Mapping[str, Any], previous: Mapping[str, Any], managed: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Join what is found now with what a process that was killed had remembered; return (record, left over).

    The older value of a control is the original one. Left over, to be put back at once, is what the earlier process
    held and we do not. A cgroup made since under an old name keeps what was found in it, as all does after a reboot.
    Raises InputError where ``previous`` is not one of ours.
    """
    old = items_of(previous) if previous else []
    if previous.get("boot_id") != found["boot_id"]:
        old = []
    merged = {_key(item): dict(item) for item in found["items"]}
    left: list[Mapping[str, Any]] = []
    for item in old:
        key = _key(item)
        ours = any(item["cgroup"] == vm or item["cgroup"].startswith(vm + "/") for vm in managed)
        if key in merged:
            merged[key] = _older(item, merged[key])
        elif ours and item["what"] in ("bandwidth", "burst", "affinity"):
            # What is lifted already, or threads that were confined by affinity and now by a cpuset.
            merged[key] = dict(item)
        else:
            left.append(item)
    return dict(found, items=list(merged.values())), dict(found, items=left)


def _key(item: Mapping[str, Any]) -> tuple[object, ...]:
    # A cpuset's tree names the inode of each of its cgroups.
    return item["what"], item["cgroup"], item.get("inode"), item.get("device")


def _older(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    if old["what"] == "cpuset":
        nodes = {(path, inode): [path, inode, *rest] for path, inode, *rest in (*new["tree"], *old["tree"])}
        return dict(new, tree=sorted(nodes.values(), key=lambda node: str(node[0]).count("/")))
    if old["what"] == "affinity":
        # A thread that the earlier process did not know was born under its hands: its mask is no original.
        masks = {(tid, start): old["others"] or cpus for tid, start, cpus in new["threads"]}
        masks |= {(tid, start): cpus for tid, start, cpus in old["threads"]}
        others = old["others"] or new["others"]
        return dict(new, threads=[[tid, start, cpus] for (tid, start), cpus in masks.items()], others=others)
    return dict(old)


def take(held: Held, found: Mapping[str, Any], doc: Mapping[str, Any]) -> list[Taken | None]:
    """Write what does not change while we hold the host: period, weight, cpu.idle, memory nodes, managed CPUs.

    A shared VM keeps its rate while its period changes; an isolated one loses its quota, its cores bound it. CPUs
    that are not managed leave a VM's cpuset. ``found`` is what the controls hold now, ``doc`` what they held before
    anybody of us came. Returns what each VM was given, None for absent ones. Raises OSError.
    """
    out: list[Taken | None] = []
    children = {i["cgroup"]: i for i in found["items"] if i["what"] == "bandwidth"}
    for row, vm in enumerate(held.controls):
        if vm.absent:
            out.append(None)
            continue
        mine = children[vm.cgroup]
        for path, item in children.items():
            if path.startswith(vm.cgroup + "/") and item["quota"] != NO_LIMIT:
                child = Cgroup.open(vm.cpu.mount, path)
                try:
                    put_bandwidth(child, NO_LIMIT, item["period"])
                finally:
                    child.close()
        if any(i["what"] == "burst" and i["cgroup"] == vm.cgroup for i in found["items"]):
            vm.cpu.write(burst_file(vm.cpu), b"0\n")
        quota = NO_LIMIT
        shared = held.table.isolation[row] == Isolation.SHARED
        if shared and mine["quota"] != NO_LIMIT:
            quota = max(mine["quota"] * held.period_us // mine["period"], MIN_QUOTA_US)
        put_bandwidth(vm.cpu, quota, held.period_us)
        item = next(i for i in doc["items"] if i["what"] == "weight" and i["cgroup"] == vm.cgroup)
        weight, idle = int(item["weight"]), item["idle"]
        if shared and not idle:
            weight = _weight(held, row, vm.cpu.mount.version)
            put_weight(vm.cpu, weight, idle)
            if held.table.priority[row] < 0 and idle is not None:
                idle = 1
        put_weight(vm.cpu, weight, idle)
        _take_cpuset(vm, held.layout)
        bind = not shared and held.memory_nodes != "off"
        node = held.layout.node_id[int(held.table.zone[row])]
        why = bind_memory(vm.cpuset_tree, node, move=held.memory_nodes == "bind") if bind else ""
        out.append(Taken(weight, idle, why))
        if any(i["what"] == "cookie" and i["cgroup"] == vm.cgroup for i in found["items"]):
            cookies.give(held.threads[row].threads)
    return out


def replaced(doc: Mapping[str, Any], former: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``doc`` with what was found of a VM in place of what was remembered of the cgroup it lived in before."""
    kept = [item for item in doc["items"] if not former or item["cgroup"] != former]
    return dict(doc, items=kept + found["items"])


def _has_cookie(threads: VmThreads) -> bool:
    """Return whether somebody else (libvirt does it, too) keeps a VM's threads apart already. Raises OSError."""
    for tid in threads.threads:
        try:
            if cookies.cookie_of(tid):
                return True
        except OSError as error:
            if error.errno not in GONE:
                raise
    return False


def _weight(held: Held, row: int, version: int) -> int:
    reserved = max(int(held.table.reservation[row, Resource.CPU]), 1) / held.layout.units_per_cpu
    urgency = 1 + max(int(held.table.priority[row]), 0)
    weight = min(max(round(WEIGHT_PER_CPU * reserved * urgency), 1), _MAX_WEIGHT)
    return weight if version == 2 else max(weight * 1024 // 100, 2)


def _take_cpuset(vm: VmControls, layout: CpuLayout) -> None:
    if not vm.cpuset:
        return
    for group in vm.cpuset_tree:
        if group.mount.version == 1 and not _must(group, "cpuset.mems").strip():
            group.write("cpuset.mems", memory_nodes_above(group).encode() + b"\n")
    managed = frozenset(int(c) for c in layout.cpu_id)
    now = cpulist.parse(_must(vm.cpuset_tree[0], "cpuset.cpus").decode())
    keep = now & managed
    if keep and keep != now:
        narrow, wide = (cpulist.form(s).encode() + b"\n" for s in (keep, now))
        write_cpus(vm, narrow, wide, wide)


def memory_nodes_above(group: Cgroup) -> str:
    """Return the memory nodes of the nearest cpuset above that has any. Raises HostError where none has."""
    parent = group.path
    while parent:
        parent = parent.rpartition("/")[0]
        text = read_text(f"{group.mount.path}/{parent}/cpuset.mems" if parent else f"{group.mount.path}/cpuset.mems")
        if text:
            return text
    raise HostError(f"{group.where} has no memory nodes and no cpuset above it has any: write cpuset.mems there first")


def _bandwidth(group: Cgroup) -> dict[str, Any]:
    if group.mount.version == 1:
        quota, period = int(_must(group, QUOTA_V1)), int(_must(group, PERIOD_V1))
    elif group.has(QUOTA_V2):
        quota, period = parse_quota(2, _must(group, QUOTA_V2), 0)
    else:  # below the VM, without the cpu controller
        quota, period = NO_LIMIT, 0
    return {"what": "bandwidth", "cgroup": group.path, "inode": group.inode, "quota": quota, "period": period}


def _burst(group: Cgroup) -> list[dict[str, Any]]:
    """Return the item of what a group may save up: no quota below that is taken (tg_set_cfs_bandwidth())."""
    name = burst_file(group)
    burst = int(group.read(name) or 0) if group.has(name) else 0
    return [{"what": "burst", "cgroup": group.path, "inode": group.inode, "burst": burst}] if burst else []


def _partition(group: Cgroup) -> list[dict[str, Any]]:
    """Return the item of a v2 cpuset's partition; it comes before the cpuset's, whose CPUs bind it."""
    state = group.read(PARTITION_FILE) if group.mount.version == 2 else None
    if state is None:
        return []
    word = state.decode("ascii", "replace").partition(" ")[0].strip()
    return [{"what": "partition", "cgroup": group.path, "inode": group.inode, "state": word}]


def _io(group: Cgroup, device: str) -> dict[str, Any]:
    number = device.encode()
    if group.mount.version == 1:
        rates = [parse_io_limit(1, _must(group, name), number, b"") for name in (READ_V1, WRITE_V1)]
    else:
        rates = [parse_io_limit(2, _must(group, IO_V2), number, key) for key in (b"rbps", b"wbps")]
    return {"what": "io", "cgroup": group.path, "inode": group.inode, "device": device,
            "read": rates[0], "write": rates[1]}  # fmt: skip


def _affinity(vm: VmControls, threads: VmThreads, layout: CpuLayout, roots: Roots) -> list[dict[str, Any]]:
    """Return what the threads' masks were: all of them where we set masks, else those narrower than their cpuset.

    Kernels before 6.2 forget a thread's own mask when its cpuset changes, later ones remember it (user_cpus_ptr).
    """
    masks = threads.affinity()
    others: str | None = None
    if vm.cpuset:
        text = vm.cpuset_tree[0].read("cpuset.effective_cpus") or vm.cpuset_tree[0].read("cpuset.cpus.effective") or b""
        whole = cpulist.parse(text.decode()) or layout.online
        masks = {tid: mask for tid, mask in masks.items() if mask < whole}
        if not masks:
            return []
    else:
        others = cpulist.form(frozenset().union(*masks.values()) or layout.online)
    listed = [[tid, threads.threads[tid].start, cpulist.form(mask)] for tid, mask in masks.items()]
    return [
        {"what": "affinity", "cgroup": vm.cgroup, "inode": vm.cpu.inode, "threads": listed, "others": others}
    ]  # fmt: skip


def _must(group: Cgroup, name: str) -> bytes:
    data = group.read(name)
    if data is None:
        raise HostError(f"{os.path.join(group.where, name)} cannot be read")
    return data
