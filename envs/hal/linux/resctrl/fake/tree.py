"""The file tree: paths, descriptors and locks over :class:`~.groups.Kernel`. Implements Files."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

from . import members, schemata
from .groups import RESERVED, Group, Kernel, fail
from .hardware import INTEL, Hardware

PAGE = 4096
"""kernfs_fop_write_iter() takes no more in one write."""
EVENTS = ("llc_occupancy", "mbm_total_bytes", "mbm_local_bytes")
_WRITABLE = frozenset({"schemata", "mode", "tasks", "cpus", "cpus_list"})


@dataclass(slots=True)
class _Handle:
    path: str
    group: Group | None
    """The group whose file or directory this is; None below info/."""
    flags: int
    mount: int


class FakeResctrl:
    """One mount point, mounted to begin with.

    ``alive`` are the threads that there are; ``writer`` is the thread that 0 in a tasks file means. ``counters`` maps
    (group path, domain, event) to what a monitoring file reads, for instance "4096" or "Unavailable". ``before`` is
    called with (operation, path) ahead of every call that changes something; what it raises, the call raises.
    """

    def __init__(self, hardware: Hardware = INTEL, *, path: str = "/sys/fs/resctrl", writer: int = 1) -> None:
        self.hardware, self.path, self.writer = hardware, path, writer
        self.alive: set[int] = {writer}
        self.counters: dict[tuple[str, int, str], str] = {}
        self.before: Callable[[str, str], None] = lambda operation, path: None
        self.writes: list[tuple[str, bytes]] = []
        """Every write that was attempted: (path, data)."""
        self.locked_by_other = False
        """Another tool holds the lock on the root directory."""
        self.kernel = Kernel(hardware)
        self._mounted = True
        self._mount = 1
        self._handles: dict[int, _Handle] = {}
        self._next = 1_000_000  # no number that could be a real descriptor
        self._locks: dict[str, int] = {}

    # what other tools and the machine do

    def umount(self) -> None:
        """Detach as ``umount --lazy``: every control is reset once the last descriptor is closed; here, at once."""
        self._mounted = False
        self.kernel = Kernel(self.hardware)

    def mount(self) -> None:
        """Mount again, as a new file system."""
        self._mounted, self._mount = True, self._mount + 1

    def offline(self, cpu: int) -> None:
        """Take a CPU offline."""
        self.kernel.set_online(cpu, False)

    def online(self, cpu: int) -> None:
        """Bring a CPU back."""
        self.kernel.set_online(cpu, True)

    def text(self, path: str) -> str:
        """Return what a file reads now. Raises OSError."""
        fd = self.open(f"{self.path}/{path}", os.O_RDONLY)
        try:
            return self.pread(fd, 1 << 16, 0).decode()
        finally:
            self.close(fd)

    def put(self, path: str, text: str) -> None:
        """Write a file as another tool would. Raises OSError."""
        fd = self.open(f"{self.path}/{path}", os.O_WRONLY)
        try:
            self._write(self._handles[fd], text.encode())
        finally:
            self.close(fd)

    # Files

    def mount_id(self, path: str) -> int | None:
        """See Files."""
        return self._mount if self._mounted and path == self.path else None

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        """See Files."""
        if path.startswith("/"):
            if not self._mounted or not (path == self.path or path.startswith(self.path + "/")):
                fail(errno.ENOENT)
            full = path.removeprefix(self.path).strip("/")
        else:
            handle = self._live(dir_fd if dir_fd is not None else -1)
            full = f"{handle.path}/{path}".strip("/") if path != "." else handle.path
        group, name = self._locate(full)
        directory = name == "" or (group is None and name in self._info_dirs()) or name in ("mon_groups", "mon_data")
        directory = directory or (group is not None and name.startswith("mon_data/") and name.count("/") == 1)
        if flags & os.O_DIRECTORY and not directory:
            fail(errno.ENOTDIR)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if writes and directory:
            fail(errno.EISDIR)
        self._next += 1
        self._handles[self._next] = _Handle(full, group, flags, self._mount)
        if not directory and not self._exists(group, name):
            del self._handles[self._next]
            fail(errno.ENOENT)
        return self._next

    def close(self, fd: int) -> None:
        """See Files."""
        if self._handles.pop(fd, None) is None:
            fail(errno.EBADF)
        for path, owner in list(self._locks.items()):
            if owner == fd:
                del self._locks[path]

    @property
    def open_files(self) -> int:
        """How many descriptors are open: to find what was forgotten."""
        return len(self._handles)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """See Files."""
        handle = self._live(fd)
        group, name = self._locate(handle.path)
        return self._read(group, name).encode()[offset : offset + length]

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """See Files."""
        handle = self._live(fd)
        if not handle.flags & (os.O_WRONLY | os.O_RDWR):
            fail(errno.EBADF)
        self.writes.append((handle.path, data))
        self.before("write", handle.path)
        return self._write(handle, data)

    def _write(self, handle: _Handle, data: bytes) -> int:
        group, name = self._locate(handle.path)
        if group is None or name not in _WRITABLE:
            fail(errno.EACCES)
        if not data:
            return 0
        if len(data) > PAGE:
            fail(errno.E2BIG)
        text = data.decode("utf-8", "replace")
        if name == "schemata":
            schemata.write(self.kernel, group, text)
        elif name == "mode":
            self.kernel.set_mode(group, text)
        elif name == "tasks":
            members.move_tasks(self.kernel, group, text, lambda: self.alive, self.writer)
        else:
            members.set_cpus(self.kernel, group, text, as_list=name == "cpus_list")
        return len(data)

    def mkdir(self, path: str, *, dir_fd: int) -> None:
        """See Files."""
        full = f"{self._live(dir_fd).path}/{path}".strip("/")
        self.before("mkdir", full)
        above, _, name = full.rpartition("/")
        if above == "":
            self.kernel.make(name)
            return
        group, rest = self._locate(above)
        if group is None or group.parent is not None or rest != "mon_groups":
            fail(errno.EPERM)
        self.kernel.make_monitor(group, name)

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        """See Files."""
        full = f"{self._live(dir_fd).path}/{path}".strip("/")
        self.before("rmdir", full)
        group, rest = self._locate(full)
        if group is None or rest or group is self.kernel.root:
            fail(errno.EPERM)
        self.kernel.remove(group)

    def rename(self, path: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """See Files."""
        source = f"{self._live(src_dir_fd).path}/{path}".strip("/")
        target = f"{self._live(dst_dir_fd).path}/{to}".strip("/")
        self.before("rename", source)
        group, rest = self._locate(source)
        parent, below = self._locate(target.rpartition("/")[0])
        if group is None or rest or parent is None or (group.parent is not None and below != "mon_groups"):
            fail(errno.EPERM)
        self.kernel.reparent(group, parent, target.rpartition("/")[2])

    def listdir(self, fd: int) -> list[str]:
        """See Files."""
        handle = self._live(fd)
        group, name = self._locate(handle.path)
        if group is None:
            prefix = name + "/" if name else ""
            return sorted({p.removeprefix(prefix).split("/")[0] for p in self._info() if p.startswith(prefix)})
        if name == "mon_groups":
            return list(group.children)
        if name == "mon_data":
            return [f"mon_L3_{d:02d}" for d in sorted(self.kernel.ctrl["L3"])]
        files = {"tasks", "cpus", "cpus_list", "mon_data"}
        if group.parent is None:
            files |= {"schemata", "mode", "size", "mon_groups"}
        if group is self.kernel.root:
            files |= {"info", *self.kernel.groups}
        return sorted(files)

    def links(self, fd: int) -> int:
        """See Files."""
        handle = self._live(fd)
        group, name = self._locate(handle.path)
        if group is self.kernel.root and name == "":
            return 5 + len(self.kernel.groups)  # itself, its name above, info, mon_groups, mon_data
        return 2 + sum(1 for n in self.listdir(fd) if n in ("mon_data", "mon_groups") or n.startswith("mon_L3_"))

    def flock(self, fd: int, operation: int) -> None:
        """See Files."""
        path = self._live(fd).path
        if operation & fcntl.LOCK_UN:
            self._locks.pop(path, None)
            return
        if (self.locked_by_other and path == "") or self._locks.get(path, fd) != fd:
            fail(errno.EWOULDBLOCK)
        self._locks[path] = fd

    # what is behind them

    def _live(self, fd: int) -> _Handle:
        handle = self._handles.get(fd)
        if handle is None:
            fail(errno.EBADF)
        if not self._mounted or handle.mount != self._mount or (handle.group is not None and handle.group.removed):
            fail(errno.ENODEV)
        if handle.group is not None:  # a monitoring group may have been moved
            handle.path = f"{handle.group.path}/{self._rest(handle)}".strip("/")
        return handle

    def _rest(self, handle: _Handle) -> str:
        parts = handle.path.split("/")
        group = handle.group
        depth = 0 if group is self.kernel.root else 1 if group is not None and group.parent is None else 0
        if group is not None and group.parent is not None:
            depth = 2 if group.parent is self.kernel.root else 3
        return "/".join(parts[depth:])

    def _locate(self, path: str) -> tuple[Group | None, str]:
        """Return (group, what of it) for a path below the mount; (None, rest) below info/."""
        parts = path.split("/") if path else []
        if parts[:1] == ["info"]:
            return None, "/".join(parts[1:])
        group = self.kernel.root
        if parts and parts[0] not in RESERVED:
            found = self.kernel.groups.get(parts[0])
            if found is None:
                fail(errno.ENOENT)
            group, parts = found, parts[1:]
        if parts[:1] == ["mon_groups"] and len(parts) > 1:
            child = group.children.get(parts[1])
            if child is None:
                fail(errno.ENOENT)
            group, parts = child, parts[2:]
        return group, "/".join(parts)

    def _info_dirs(self) -> set[str]:
        return {"", *(p.rpartition("/")[0] for p in self._info())}

    def _exists(self, group: Group | None, name: str) -> bool:
        if group is None:
            return name in self._info()
        if name.startswith("mon_data/"):
            parts = name.split("/")
            return len(parts) == 3 and parts[2] in EVENTS and self._domain(parts[1]) in self.kernel.ctrl["L3"]
        return name in {"tasks", "cpus", "cpus_list"} or (group.parent is None and name in {"schemata", "mode", "size"})

    @staticmethod
    def _domain(name: str) -> int:
        number = name.removeprefix("mon_L3_")
        return int(number) if number.isdigit() else -1

    def _read(self, group: Group | None, name: str) -> str:
        if group is None:
            if name not in self._info():
                fail(errno.EISDIR)
            return self._info()[name]
        if name.startswith("mon_data/"):
            _, where, event = name.split("/")
            return self.counters.get((group.path, self._domain(where), event), "0") + "\n"
        match name:
            case "schemata":
                return schemata.show(self.kernel, group)
            case "size":
                return schemata.size(self.kernel, group)
            case "mode":
                return group.mode + "\n"
            case "tasks":
                return members.show_tasks(self.kernel, group, lambda: self.alive)
            case "cpus" | "cpus_list":
                return members.show_cpus(self.kernel, group, as_list=name == "cpus_list")
        fail(errno.EISDIR)

    def _info(self) -> dict[str, str]:
        hw, kernel = self.hardware, self.kernel
        out = {
            "last_cmd_status": kernel.status or "ok\n",
            "L3/num_closids": f"{hw.l3_closids}\n", "L3/cbm_mask": f"{hw.cbm_mask:x}\n",
            "L3/min_cbm_bits": f"{hw.min_cbm_bits}\n", "L3/shareable_bits": f"{hw.shareable:x}\n",
            "L3/sparse_masks": f"{int(hw.sparse)}\n", "L3/bit_usage": self._bit_usage(),
            "MB/num_closids": f"{hw.mb_closids}\n", "MB/min_bandwidth": f"{hw.mb_min}\n",
            "MB/bandwidth_gran": f"{hw.mb_gran}\n", "MB/delay_linear": f"{int(hw.linear)}\n",
        }  # fmt: skip
        if not hw.amd:
            out["MB/thread_throttle_mode"] = "max\n"
        if hw.monitors:
            out |= {"L3_MON/num_rmids": f"{hw.rmids}\n", "L3_MON/mon_features": "\n".join(EVENTS) + "\n",
                    "L3_MON/max_threshold_occupancy": "262144\n"}  # fmt: skip
        return out

    def _bit_usage(self) -> str:
        """rdt_bit_usage_show(): for each bit, who uses it; hardware and software together is X."""
        parts = []
        for domain, values in sorted(self.kernel.ctrl["L3"].items()):
            masks = {"shareable": 0, "exclusive": 0}
            for g in self.kernel.all_groups():
                masks[g.mode] |= values[g.closid]
            word = ""
            for bit in reversed(range(self.hardware.cbm_bits)):
                hard, soft, own = (m >> bit & 1 for m in (self.hardware.shareable, *masks.values()))
                word += "X" if hard and soft else "H" if hard else "S" if soft else "E" if own else "0"
            parts.append(f"{domain}={word}")
        return ";".join(parts) + "\n"
