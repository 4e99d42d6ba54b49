"""Records this machine at 10 ms while real programs run in cgroups of their own: how this folder's data came about.

Needs root, cgroup v1 or v2, and Debian's redis-server, nginx-light, wrk, zstd, xz-utils and gcc::

    python tests/recordings/record.py --out out/recordings --device /dev/vda

Each session is recorded by ``foreshare record`` into a folder of its own. A program's UUID is the same in all.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.temporary import temporary_cgroups

HERE = Path(__file__).parent
SESSIONS: dict[str, tuple[int, tuple[str, ...], float]] = {
    "seed1-redis-train-stamps": (1, ("redis", "train", "stamps"), 200),
    "seed1-sqlite-compile": (1, ("sqlite", "compile"), 200),
    "seed1-http-compress": (1, ("http", "compress"), 200),
    "seed2-redis-sqlite-http-compile": (2, ("redis", "sqlite", "http", "compile"), 200),
    "seed2-train-compress-stamps": (2, ("train", "compress", "stamps"), 200),
    "seed3-redis": (3, ("redis",), 90),
    "seed3-train": (3, ("train",), 90),
    "seed3-http": (3, ("http",), 90),
}
"""Seed, programs that run together, seconds."""
FITTING: dict[str, tuple[int, tuple[str, ...], float]] = {
    "fit1-git-log-video": (11, ("git", "log", "video"), 180),
    "fit1-store-sort-jobs": (11, ("store", "sort", "jobs"), 180),
    "fit1-backup-node-simulate-seal": (11, ("backup", "node", "simulate", "seal"), 180),
    "fit2-log-store-backup": (12, ("log", "store", "backup"), 180),
    "fit2-git-jobs-node": (12, ("git", "jobs", "node"), 180),
    "fit2-video-sort-simulate-seal": (12, ("video", "sort", "simulate", "seal"), 180),
    "fit3-store": (13, ("store",), 90),
    "fit3-jobs": (13, ("jobs",), 90),
    "fit3-log-backup": (13, ("log", "backup"), 120),
}
"""The same of programs that are fitted to only, and not kept here."""
AFRESH: dict[str, tuple[int, tuple[str, ...], float]] = {
    "seed4-redis-sqlite-http": (4, ("redis", "sqlite", "http"), 300),
    "seed4-train-compress-compile-stamps": (4, ("train", "compress", "compile", "stamps"), 300),
    "seed5-redis-train-compile": (5, ("redis", "train", "compile"), 300),
    "seed5-sqlite-http-compress-stamps": (5, ("sqlite", "http", "compress", "stamps"), 100),
}
"""The programs of SESSIONS once more, by which nothing was chosen; not kept here either."""


def uuid_of(program: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{program}.recordings.foreshare"))


def record(name: str, seed: int, programs: tuple[str, ...], seconds: float, out: Path, device: str) -> None:
    mounts = dict.fromkeys(find_hierarchies(Roots()).controllers.values())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=out) as scratch, temporary_cgroups(len(programs)) as cgroups:
        lines = [f'[host]\nstate_dir = "{scratch}/state"\nio = [{{ device = "{device}", bandwidth = "200MB/s" }}]\n']
        running: list[subprocess.Popen[bytes]] = []
        for program, cgroup in zip(programs, cgroups, strict=True):
            lines.append(f'[[vm]]\nname = "{program}"\nuuid = "{uuid_of(program)}"\ncgroup = "{cgroup}"\n')
            files = [f"{m.path}/{cgroup}/cgroup.procs" for m in mounts]
            files = [f for f in files if os.path.exists(f)]
            enter = f'for t in {" ".join(files)}; do echo $$ > "$t" || exit 9; done; exec "$@"'
            tail = ["--seed", str(seed), "--seconds", str(seconds + 4), "--folder", scratch]
            command = [sys.executable, str(HERE / "programs.py"), "serve", program, *tail]
            running.append(subprocess.Popen(["sh", "-c", enter, "sh", *command], env=environment))
            if program in ("redis", "http"):
                command[2] = "drive"
                running.append(subprocess.Popen(command, env=environment))
        config = Path(scratch) / "host.toml"
        config.write_text("".join(lines))
        time.sleep(2.0)
        foreshare = str(Path(sys.executable).parent / "foreshare")
        command = [foreshare, "record", "--config", str(config), "--seconds", str(seconds), "--out", str(out / name)]
        subprocess.run(command, check=True)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="/dev/vda", help="block device that the programs write to")
    parser.add_argument("--share", type=float, default=1.0, help="record this share of the time")
    parser.add_argument("sessions", nargs="*", default=list(SESSIONS))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for name in a.sessions:
        seed, programs, seconds = (SESSIONS | FITTING | AFRESH)[name]
        record(name, seed, programs, seconds * a.share, a.out, a.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
