"""A libvirtd of the test's own, in a mount namespace where its configuration is ours, with domains that only spin."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.roots import Roots

NEEDED = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "mount")
_MISSING = [name for name in NEEDED if not shutil.which(name)]
needs_libvirt = [
    pytest.mark.linux_cgroup,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (Debian: libvirt-daemon-system"
                       " libvirt-clients qemu-system-x86)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a system libvirtd, and cgroups"),
    pytest.mark.skipif(os.path.exists("/run/libvirt/libvirt-sock"), reason="a libvirtd runs here already: left alone"),
    pytest.mark.skipif("cpu" not in find_hierarchies(Roots()).controllers, reason="no cpu cgroup is mounted"),
]  # fmt: skip
_QEMU = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = [ "cpu", "cpuset", "cpuacct", "blkio", "memory" ]
"""
SPIN = b"\xeb\xfe" + bytes(508) + b"\x55\xaa" + bytes(1 << 20)
"""A disk (the firmware boots from no smaller one) whose boot sector jumps to itself."""


class Libvirt:
    """One libvirtd, by its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon: subprocess.Popen[bytes] | None = None
        self.uri = f"qemu+unix:///system?socket={folder}/sock/libvirt-sock"

    def virsh(self, *args: str) -> str:
        """Run a command that must work."""
        done = subprocess.run(
            ["virsh", "-c", self.uri, *args], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    def answers(self, seconds: float) -> bool:
        """Return whether it lists its domains for virsh within ``seconds``."""
        try:
            done = subprocess.run(["virsh", "-c", self.uri, "list"], capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def define(self, number: int, vcpus: int = 1) -> str:
        """Define a domain that spins once it runs; return its UUID."""
        uuid = f"f0f0f0f0-0000-4000-8000-{number:012x}"
        (self.folder / "spin.img").write_bytes(SPIN)
        xml = self.folder / f"{number}.xml"
        xml.write_text(
            f"<domain type='qemu'><name>fs-{number}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
            f"<vcpu current='1'>{vcpus}</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
            "<emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu'"
            f" type='raw'/><source file='{self.folder}/spin.img'/><target dev='vda' bus='virtio'/><readonly/>"
            "<shareable/></disk><memballoon model='none'/></devices></domain>"
        )
        self.virsh("define", str(xml))
        return uuid

    def start(self) -> None:
        """Start it, where it does not run."""
        if self.daemon is not None and self.daemon.poll() is None:
            return
        folder = self.folder
        # Its own configuration and state: whatever the machine's libvirt has stays as it is.
        script = (
            f"mount --make-rprivate / && mkdir -p /run/libvirt /var/lib/libvirt"
            f" && mount --bind {folder}/etc /etc/libvirt"
            f" && mount --bind {folder}/run /run/libvirt && mount --bind {folder}/lib /var/lib/libvirt"
            f" && exec libvirtd --config {folder}/libvirtd.conf --pid-file {folder}/pid"
        )
        (folder / "sock/libvirt-sock").unlink(missing_ok=True)
        with open(folder / "log", "ab") as log:
            self.daemon = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=log, stderr=log)
        until = time.monotonic() + 60
        while self.daemon.poll() is None and not (folder / "sock/libvirt-sock").exists():
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; its domains run on."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()

    def destroy_all(self) -> None:
        """End its domains, where it answers."""
        if self.daemon is not None and self.daemon.poll() is None and self.answers(30.0):
            for name in self.virsh("list", "--name").split():
                self.virsh("destroy", name)

    def bury(self) -> None:
        """Kill every domain that still runs; needs no libvirtd."""
        for file in (self.folder / "run/qemu").glob("*.pid"):
            with suppress(OSError, ValueError):
                pid = int(file.read_text())
                if str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def libvirtd(folder: Path) -> Iterator[Libvirt]:
    """Run a libvirtd; end it and its domains afterwards."""
    for name in ("sock", "run", "lib"):
        (folder / name).mkdir(parents=True)
    shutil.copytree("/etc/libvirt", folder / "etc", ignore=shutil.ignore_patterns("*.xml"))
    (folder / "etc/qemu.conf").write_text(_QEMU)
    (folder / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{folder}/sock"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n'
    )
    host = Libvirt(folder)
    with ExitStack() as after:  # each of these, in the opposite order, whatever comes of the others
        after.callback(host.bury)
        after.callback(host.stop)
        after.callback(host.destroy_all)
        host.start()
        if host.daemon is None or host.daemon.poll() is not None:
            pytest.skip(f"libvirtd does not start here: {(folder / 'log').read_text()[-400:]}")
        yield host
