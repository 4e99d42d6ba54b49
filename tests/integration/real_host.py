"""What the end-to-end tests share: cgroups of this machine, processes in them, the command line, a close look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.cpulist import parse
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.temporary import temporary_cgroups

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
"""Users' stdout is buffered: what is wrong with it shows at the very end."""
FORESHARE = str(Path(sys.executable).parent / "foreshare")
CPUS = sorted(os.sched_getaffinity(0))
_MOUNTS = find_hierarchies(Roots()).controllers
V1 = all(name in _MOUNTS and _MOUNTS[name].version == 1 for name in ("cpu", "cpuacct", "cpuset"))
needs_cgroups = [
    pytest.mark.linux_cgroup,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make cgroups"),
    pytest.mark.skipif(not V1, reason="cpu, cpuacct and cpuset are not mounted as cgroup v1"),
    pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs to move anything"),
]
SPIN = ["sh", "-c", "while :; do :; done"]
_OURS = (
    "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "cpu.idle", "cpuset.cpus", "cpuset.mems",
    "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
)  # fmt: skip


def call(*args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run([FORESHARE, *args], capture_output=True, text=True, timeout=timeout, check=False,
                          env=ENVIRONMENT)  # fmt: skip


def answer(*args: str, timeout: float = 60.0) -> dict[str, Any]:
    """Run a command that must do its work and print one JSON object and nothing else."""
    done = call(*args, timeout=timeout)
    assert done.returncode == 0, (done.args, done.stderr)
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a command which could not work left on stderr."""
    assert done.returncode == 2, (done.args, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("foreshare") and "Traceback" not in lines[0]
    return lines[0]


def path_of(cgroup: str, name: str) -> Path:
    """Return the path of a control file."""
    return Path(_MOUNTS[name.partition(".")[0]].path) / cgroup / name


def read(cgroup: str, name: str) -> str:
    """Return what a control file holds."""
    return path_of(cgroup, name).read_text().strip()


def cpus_of(cgroup: str) -> frozenset[int]:
    """Return the CPUs of a cgroup's cpuset."""
    return parse(read(cgroup, "cpuset.cpus"))


def quota_cpus(cgroup: str) -> float:
    """Return how many CPUs' worth of time a cgroup may use: its quota, or what its cpuset has."""
    quota, period = int(read(cgroup, "cpu.cfs_quota_us")), int(read(cgroup, "cpu.cfs_period_us"))
    return min(len(cpus_of(cgroup)), quota / period if quota > 0 else float("inf"))


def cpu_seconds(cgroup: str) -> float:
    """Return the CPU time that a cgroup has used."""
    return int(read(cgroup, "cpuacct.usage")) * 1e-9


def snapshot(cgroups: Iterable[str], pids: Iterable[int] = ()) -> dict[str, object]:
    """Return every byte and every mask that a run may change."""
    out: dict[str, object] = {}
    for cgroup in cgroups:
        for name in _OURS:
            if name.partition(".")[0] in _MOUNTS and path_of(cgroup, name).exists():
                out[f"{cgroup}/{name}"] = path_of(cgroup, name).read_bytes()
    for pid in pids:
        out[f"affinity of {pid}"] = tuple(sorted(os.sched_getaffinity(pid)))
    return out


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Look until ``condition`` holds; return whether it did in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def vm_table(name: str, cgroup: str, *lines: str) -> str:
    """Return the TOML of one VM."""
    return "\n".join(["[[vm]]", f'name = "{name}"', f'cgroup = "{cgroup}"', *lines, ""])


@contextmanager
def processes(cgroups: Sequence[str], argv: Sequence[str] = SPIN) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run ``argv`` in each of ``cgroups``, from its first instruction on; end what is left of it afterwards."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for cgroup in cgroups:
            files = [f"{mount.path}/{cgroup}/cgroup.procs" for mount in dict.fromkeys(_MOUNTS.values())]
            files = [file for file in files if os.path.exists(file)]
            enter = f'for t in {" ".join(files)}; do echo $$ > "$t" || exit 9; done; exec "$@"'
            process = subprocess.Popen(["sh", "-c", enter, "sh", *argv])
            running.append(process)
            for file in files:
                assert wait_for(lambda f=file, p=process: str(p.pid) in Path(f).read_text().split()), file
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


class Place:
    """Temporary cgroups, a state directory and a configuration over them."""

    def __init__(self, folder: Path, cgroups: list[str]) -> None:
        self.folder, self.cgroups = folder, cgroups
        self.config, self.state_dir = folder / "host.toml", folder / "state"

    def write(self, *tables: str) -> Path:
        """Write the configuration."""
        self.config.write_text(f'[host]\nstate_dir = "{self.state_dir}"\n' + "".join(tables))
        return self.config

    def run_args(self, *more: str) -> list[str]:
        """Return the arguments of a run on this host."""
        return ["run", "--hal", "linux", "--config", str(self.config), *more]

    @property
    def journal(self) -> Path:
        """The journal, there while a run holds the host."""
        return self.state_dir / "journal.json"


@contextmanager
def place(folder: Path, n: int) -> Iterator[Place]:
    """Make a place with ``n`` cgroups."""
    with temporary_cgroups(n) as cgroups:
        yield Place(folder, cgroups)
