"""VMs that a configuration could name: QEMU and its kin among the processes, libvirt's scopes among the cgroups.

Read-only and bounded. Everything found is what a process says of itself, so it is shown to people and never acted upon.
Layout of libvirt's cgroups: https://libvirt.org/cgroups.html; names are systemd's, escaped as systemd-escape(1) does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Final

from foreshare.policies.errors import InputError

from .cgroups import find_hierarchies, split_path
from .roots import Roots, read_text

MAX_PROCESSES: Final = 20_000
MAX_DIRECTORIES: Final = 5_000
MAX_DEPTH: Final = 5
MAX_FOUND: Final = 512
_MONITORS: Final = ("qemu", "kvm", "firecracker", "cloud-hyperviso")  # /proc/PID/comm holds 15 characters
_SCOPE: Final = re.compile(r"machine-(?:qemu|lxc).*\.scope|.+\.libvirt-(?:qemu|lxc)|qemu.*", re.ASCII)
_INSIDE: Final = re.compile(r"(?:/libvirt)?(?:/(?:emulator|vcpu\d+|iothread\d+))?$", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def vm_candidates(roots: Roots) -> list[dict[str, Any]]:
    """Return ``name``, ``cgroup`` (as a configuration takes it; None if it has none of its own), ``uuid``, ``pid``.

    Processes come first, then scopes without one that is visible, in the order of their cgroups.
    """
    found = sorted(_processes(roots), key=lambda vm: (vm["cgroup"] or "", vm["pid"]))[:MAX_FOUND]
    seen = {vm["cgroup"] for vm in found}
    for cgroup in sorted(scopes(roots)):
        if cgroup not in seen and len(found) < MAX_FOUND:
            found.append({"name": _scope_name(cgroup), "cgroup": cgroup, "uuid": None, "pid": None})
    return found


def _processes(roots: Roots) -> Iterator[dict[str, Any]]:
    """Yield the processes that run VMs."""
    try:
        pids = [n for n in os.listdir(roots.proc) if n.isascii() and n.isdigit()]
    except OSError:
        return
    for pid in sorted(pids, key=int)[:MAX_PROCESSES]:
        found = vm_process(roots, int(pid))
        if found is not None:
            yield found


def vm_process(roots: Roots, pid: int) -> dict[str, Any] | None:
    """Return what a process that runs a VM says of itself; None for any other."""
    comm = read_text(f"{roots.proc}/{pid}/comm") or ""
    if not comm.startswith(_MONITORS):
        return None
    # The last argument ends in a NUL too.
    argv = (read_text(f"{roots.proc}/{pid}/cmdline") or "").split("\0")
    uuid = _option(argv, "-uuid") or _option(argv, "--id") or ""
    return {
        "name": _guest(argv) or comm,
        "cgroup": _cgroup(read_text(f"{roots.proc}/{pid}/cgroup") or ""),
        "uuid": uuid.lower() if _UUID.fullmatch(uuid) else None,
        "pid": pid,
    }


def _option(argv: list[str], name: str) -> str | None:
    try:
        return argv[argv.index(name) + 1][:256]
    except (ValueError, IndexError):
        return None


def _guest(argv: list[str]) -> str:
    """Return the name that QEMU was given: "-name vm1", "-name guest=vm1,debug-threads=on", with ",," for a comma."""
    text = (_option(argv, "-name") or "").replace(",,", "\0")
    parts = text.split(",")
    guest = next((p.removeprefix("guest=") for p in parts if p.startswith("guest=")), parts[0])
    return "" if "=" in guest and not text.startswith("guest=") else guest.replace("\0", ",")


def _cgroup(text: str) -> str | None:
    """Return the process's cgroup as a configuration names it; None for the root, or where it cannot be named.

    The line of the v1 cpu controller counts, else that of v2 (cgroups(7)).
    """
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            paths.setdefault(controller, path)
    whole = paths.get("cpu") or paths.get("") or ""
    if not whole.startswith("/"):
        return None
    path = _INSIDE.sub("", whole).strip("/")
    try:
        split_path(path)
    except InputError:
        return None
    return path


def scopes(roots: Roots) -> Iterator[str]:
    """Yield the cgroups that are named as libvirt names a VM's, as a configuration would name them."""
    hierarchies = find_hierarchies(roots)
    mount = hierarchies.controllers.get("cpu") or hierarchies.unified
    if mount is None:
        return
    waiting, looked_at = [("", 0)], 0
    while waiting and looked_at < MAX_DIRECTORIES:
        folder, depth = waiting.pop()
        looked_at += 1
        try:
            with os.scandir(f"{mount.path}/{folder}") as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except OSError:  # removed meanwhile, or not for us to see
            continue
        for name in names:
            path = f"{folder}/{name}" if folder else name
            if _SCOPE.fullmatch(name):
                yield path
            elif depth + 1 < MAX_DEPTH:
                waiting.append((path, depth + 1))


def _scope_name(cgroup: str) -> str:
    r"""Return the VM's name from its scope's: "machine-qemu\x2d1\x2dvm1.scope" is vm1."""
    name = cgroup.rsplit("/", 1)[-1]
    plain = re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m.group(1), 16)), name)
    plain = re.sub(r"^machine-|\.scope$|\.libvirt-\w+$", "", plain)
    return re.sub(r"^(?:qemu|lxc)-\d+-", "", plain) or name
