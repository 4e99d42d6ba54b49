"""Putting a host back as it was found, from a remembered document and the kernel's own state.

:func:`restore` is what a clean stop calls and what a later process calls after a kill -9. It trusts neither the
document nor the host: a cgroup that was removed and made again under the same name (another inode number) is left
alone, a thread is told by its start time, and a value that is right already is not written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreshare.policies.errors import HostError, InputError

from . import cookies, cpulist
from .cgroups import GONE, Cgroup, Hierarchies, find_hierarchies, parse_tids, settled, threads_file
from .controls import (
    IO_V2,
    NO_LIMIT,
    PERIOD_V1,
    QUOTA_V1,
    QUOTA_V2,
    READ_V1,
    WRITE_V1,
    first_line,
    io_payload,
    parse_io_limit,
    parse_quota,
    quota_payload,
)  # fmt: skip
from .cpu_partitions import FILE as PARTITION_FILE
from .resctrl.groups import Tree
from .resctrl.offer import files_of
from .roots import Roots, read_text
from .threads import start_time

KIND, VERSION = "linux", 1
_PASSES = 3
_LOCK_NS = 2_000_000_000
"""How long putting back waits for the lock on resctrl: nothing else can be done meanwhile."""
Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What became of the remembered items."""

    restored: int
    """Items that are as remembered now, written or not."""
    gone: int
    """Items whose cgroup or threads are no longer there."""
    failed: list[str]
    """One line for each item that could not be put back."""


class _GoneError(Exception):
    """The item's cgroup is not there any more, or a namesake is."""


def boot_id(roots: Roots) -> str:
    """Return the kernel's name for this boot; empty where it tells none."""
    return read_text(f"{roots.proc}/sys/kernel/random/boot_id") or ""


def restore(doc: Mapping[str, object], roots: Roots) -> RestoreReport:
    """Put back what ``doc`` remembers. Raises InputError where ``doc`` is not one of ours; host faults are reported.

    After a reboot nothing of it is there any more: cgroups do not outlive the kernel.
    """
    items = items_of(doc)
    if doc.get("boot_id") != boot_id(roots):
        return RestoreReport(0, len(items), [])
    hierarchies = find_hierarchies(roots)
    restored = gone = 0
    failed: list[str] = []
    pending: Sequence[Item] = items
    # A value may be refused as long as a neighbour still holds something (cpu_exclusive cpusets): go round again.
    for _ in range(_PASSES):
        again: list[Item] = []
        failed = []
        for item in pending:
            try:
                _KINDS[item["what"]](item, hierarchies, roots)
                restored += 1
            except _GoneError:
                gone += 1
            except OSError as error:
                if error.errno in GONE:
                    gone += 1
                    continue
                failed.append(f"{_named(item)}: {error.strerror}")
                again.append(item)
            except HostError as error:
                failed.append(f"{_named(item)}: {error}")
                again.append(item)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"the record of this host is damaged: {item.get('what')}: {error!r}") from error
        if not again:
            break
        pending = again
    return RestoreReport(restored, gone, failed)


def _named(item: Item) -> str:
    return f"{item['what']} of {item['cgroup']}" if item["cgroup"] else str(item["what"])


def items_of(doc: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the items of a record. Raises InputError where it is not one of ours."""
    if doc.get("kind") != KIND or doc.get("version") != VERSION:
        raise InputError(f"not a record of a linux host, version {VERSION}: {doc.get('kind')!r} {doc.get('version')!r}")
    items = doc.get("items")
    if not isinstance(items, list) or not all(isinstance(i, dict) and i.get("what") in _KINDS for i in items):
        raise InputError("the record of this host is damaged: it has no proper list of items")
    return items


def _open(hierarchies: Hierarchies, controller: str, path: str, inode: int) -> Cgroup:
    mount = hierarchies.of(controller)
    try:
        group = Cgroup.open(mount, path)
    except HostError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in GONE:
            raise _GoneError from error
        raise
    if group.inode != inode:
        group.close()
        raise _GoneError
    return group


def _read(group: Cgroup, name: str) -> bytes:
    data = group.read(name)
    if data is None:
        raise OSError(errno.EIO, f"{name} cannot be read", group.where)
    return data


def _number(group: Cgroup, name: str) -> int:
    return int(first_line(_read(group, name)))


def _set(group: Cgroup, name: str) -> frozenset[int]:
    return cpulist.parse(first_line(_read(group, name)).decode())


def _bandwidth(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    group = _open(hierarchies, "cpu", item["cgroup"], item["inode"])
    try:
        put_bandwidth(group, int(item["quota"]), int(item["period"]))
    finally:
        group.close()


def put_bandwidth(group: Cgroup, quota_us: int, period_us: int) -> None:
    """Set quota and period where they differ from what is there. Raises OSError.

    v1 has a file for each and refuses pairs that exceed the parent's on the way, so the quota is lifted in between:
    no quota is always allowed (tg_cfs_schedulable_down() in kernel/sched/core.c takes the parent's).
    """
    version = group.mount.version
    if version == 2:
        if parse_quota(2, _read(group, QUOTA_V2), 0) != (quota_us, period_us):
            group.write(QUOTA_V2, quota_payload(2, quota_us, period_us))
        return
    quota, period = _number(group, QUOTA_V1), _number(group, PERIOD_V1)
    if period != period_us:
        if quota != NO_LIMIT:
            group.write(QUOTA_V1, quota_payload(1, NO_LIMIT, 0))
            quota = NO_LIMIT
        group.write(PERIOD_V1, b"%d\n" % period_us)
    if quota != quota_us:
        group.write(QUOTA_V1, quota_payload(1, quota_us, period_us))


def _weight(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    group = _open(hierarchies, "cpu", item["cgroup"], item["inode"])
    try:
        put_weight(group, int(item["weight"]), item["idle"])
    finally:
        group.close()


def burst_file(group: Cgroup) -> str:
    """Return the name of the file that says how much unused quota may be saved up."""
    return "cpu.cfs_burst_us" if group.mount.version == 1 else "cpu.max.burst"


def _burst(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    group = _open(hierarchies, "cpu", item["cgroup"], item["inode"])
    try:
        if _number(group, burst_file(group)) != int(item["burst"]):
            group.write(burst_file(group), b"%d\n" % int(item["burst"]))
    finally:
        group.close()


def weight_file(group: Cgroup) -> str:
    """Return the name of the weight file of this version."""
    return "cpu.shares" if group.mount.version == 1 else "cpu.weight"


def put_weight(group: Cgroup, weight: int, idle: int | None) -> None:
    """Set weight and cpu.idle where they differ; ``idle`` None: the kernel has no cpu.idle. Raises OSError.

    An idle group takes no weight (EINVAL in sched_group_set_shares()) and leaving idle resets it, so idle goes first.
    """
    if idle is not None and _number(group, "cpu.idle") != idle:
        group.write("cpu.idle", b"%d\n" % idle)
    if not idle and _number(group, weight_file(group)) != weight:
        group.write(weight_file(group), b"%d\n" % weight)


def _cpuset(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    tree: list[tuple[Cgroup, frozenset[int], frozenset[int] | None]] = []
    try:
        for path, inode, cpus, mems in item["tree"]:
            # Records of an earlier version say only whether there were no memory nodes.
            nodes = cpulist.parse(mems) if isinstance(mems, str) else frozenset[int]() if mems else None
            try:
                tree.append((_open(hierarchies, "cpuset", path, inode), cpulist.parse(cpus), nodes))
            except _GoneError:
                if not tree:
                    raise
        # From above to the union, from below to the original: see controls.write_cpus.
        for group, cpus, nodes in tree:
            now = _set(group, "cpuset.cpus")
            if len(tree) > 1 and not cpus <= now:
                group.write("cpuset.cpus", cpulist.form(cpus | now).encode() + b"\n")
            if nodes and not nodes <= _set(group, "cpuset.mems"):
                _write_set(group, "cpuset.mems", nodes)
        for group, cpus, nodes in reversed(tree):
            if _set(group, "cpuset.cpus") != cpus:
                _write_set(group, "cpuset.cpus", cpus)
            if nodes is not None and _set(group, "cpuset.mems") != nodes:
                _write_set(group, "cpuset.mems", nodes)
    finally:
        for group, _cpus, _nodes in tree:
            group.close()


def _partition(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    group = _open(hierarchies, "cpuset", item["cgroup"], item["inode"])
    try:
        if _read(group, PARTITION_FILE).split()[:1] != [item["state"].encode()]:
            group.write(PARTITION_FILE, item["state"].encode() + b"\n")
    finally:
        group.close()


def _write_set(group: Cgroup, name: str, ids: frozenset[int]) -> None:
    try:
        group.write(name, cpulist.form(ids).encode() + b"\n")
    except OSError as error:
        # A cpuset with threads in it cannot be made empty again (ENOSPC: validate_change() in kernel/cgroup/cpuset.c),
        # not even in v2, where empty means "as the parent": write what the parent has, which means the same.
        if error.errno != errno.ENOSPC or ids:
            raise
        parent, _, _ = group.path.rpartition("/")
        folder = f"{group.mount.path}/{parent}" if parent else group.mount.path
        what = name.removeprefix("cpuset.")
        for candidate in (name, f"{name}.effective", f"cpuset.effective_{what}"):
            above = read_text(f"{folder}/{candidate}")
            if above:
                group.write(name, above.encode() + b"\n")
                return
        raise


def _io(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    controller = "blkio" if "blkio" in hierarchies.controllers else "io"
    group = _open(hierarchies, controller, item["cgroup"], item["inode"])
    device = str(item["device"])
    number = device.encode()
    try:
        if group.mount.version == 1:
            for name, rate in ((READ_V1, item["read"]), (WRITE_V1, item["write"])):
                if parse_io_limit(1, _read(group, name), number, b"") != rate:
                    group.write(name, io_payload(1, device, rate))
            return
        data = _read(group, IO_V2)
        now = [parse_io_limit(2, data, number, key) for key in (b"rbps", b"wbps")]
        if now != [item["read"], item["write"]]:
            words = ["max" if r is None else str(int(r)) for r in (item["read"], item["write"])]
            group.write(IO_V2, f"{device} rbps={words[0]} wbps={words[1]}\n".encode())
    finally:
        group.close()


def _affinity(item: Item, hierarchies: Hierarchies, roots: Roots) -> None:
    known: set[int] = set()
    refused: OSError | None = None

    def put(tid: int, cpus: frozenset[int]) -> None:
        nonlocal refused
        try:
            if os.sched_getaffinity(tid) != cpus:
                os.sched_setaffinity(tid, cpus)
        except OSError as error:
            if error.errno != errno.ESRCH:
                refused = error  # the others are put back all the same

    for tid, start, cpus in item["threads"]:
        if int(tid) > 0 and start_time(roots, int(tid)) == start:
            known.add(int(tid))
            put(int(tid), cpulist.parse(cpus))
    if item["others"] is not None:
        group = _open(hierarchies, "cpu", item["cgroup"], item["inode"])
        try:
            for tid in settled(lambda: _tids(group)) - known:
                put(tid, cpulist.parse(item["others"]))  # born since: would have inherited what its parent had
        finally:
            group.close()
    if refused is not None:
        raise refused


def _cookie(item: Item, hierarchies: Hierarchies, _: Roots) -> None:
    group = _open(hierarchies, "cpu", item["cgroup"], item["inode"])
    try:
        cookies.take_away(settled(lambda: _tids(group)))
    finally:
        group.close()


def _tids(top: Cgroup) -> list[int]:
    out: list[int] = []
    for group in top.walk():
        out += parse_tids(group.read(threads_file(group.mount)) or b"")
        if group is not top:
            group.close()
    return out


def _resctrl(item: Item, _: Hierarchies, roots: Roots) -> None:
    """Remove the groups that were made, and put the default group's masks back where they were narrowed."""
    files, path = files_of(roots), str(item["path"])
    if files.mount_id(path) is None:
        raise _GoneError  # an umount resets every control
    tree = Tree(files, path)
    try:
        with tree.locked(_LOCK_NS):
            gone = [not tree.remove(str(name)) for name in item["groups"]]
            now, lines = tree.root_values() if item["root"] else {}, []
            for name, values in item["root"].items():
                wrong = {d: v for d, v in values.items() if now.get(name, {}).get(int(d), v) != v}
                if wrong:
                    lines.append(f"{name}:" + ";".join(f"{int(d)}={int(v):x}" for d, v in wrong.items()) + "\n")
            if lines:
                tree.write_root("".join(lines).encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {tree.words(error)}") from error
    finally:
        tree.close()
    if all(gone) and not item["root"]:
        raise _GoneError


_KINDS: dict[str, Callable[[Item, Hierarchies, Roots], None]] = {
    "bandwidth": _bandwidth, "weight": _weight, "cpuset": _cpuset, "io": _io, "affinity": _affinity,
    "partition": _partition, "burst": _burst, "resctrl": _resctrl, "cookie": _cookie,
}  # fmt: skip
