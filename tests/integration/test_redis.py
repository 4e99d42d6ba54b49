"""A real service beside a real batch job: redis under load is served, the batch job gets what is left."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from real_host import (
    CPUS,
    ENVIRONMENT,
    FORESHARE,
    SPIN,
    cpu_seconds,
    needs_cgroups,
    place,
    processes,
    read,
    snapshot,
    vm_table,
    wait_for,
)

pytestmark = [
    *needs_cgroups,
    pytest.mark.skipif(
        not (shutil.which("redis-server") and shutil.which("redis-benchmark")), reason="redis is not installed"
    ),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
            s.sendall(b"PING\r\n")
            return s.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def test_redis_is_served_and_the_batch_job_gets_the_rest(tmp_path: Path) -> None:
    port = free_port()
    server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
              "--dir", str(tmp_path), "--logfile", str(tmp_path / "redis.log")]  # fmt: skip
    with place(tmp_path, 2) as here:
        redis, batch = here.cgroups
        here.write(
            vm_table("redis", redis, "priority = 5", "reservation = { cpu = 0.5 }", "cap = { cpu = 1 }"),
            vm_table("batch", batch, "priority = -1"),
        )
        before = snapshot(here.cgroups)
        with processes([redis], server) as first, processes([batch] * len(CPUS), SPIN) as rest:
            pids = [p.pid for p in (*first, *rest)]
            before |= snapshot([], pids)
            assert wait_for(lambda: answers(port))
            run = subprocess.Popen(
                [FORESHARE, *here.run_args("--seconds", "6", "--json")],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
            )  # fmt: skip
            assert wait_for(lambda: read(batch, "cpu.cfs_quota_us") != "-1" or run.poll() is not None)
            used = {c: -cpu_seconds(c) for c in here.cgroups}
            load = ["redis-benchmark", "-p", str(port), "-t", "get,set", "-n", "20000", "-c", "8", "-q"]
            done = subprocess.run(load, capture_output=True, text=True, timeout=60, check=False)
            used = {c: u + cpu_seconds(c) for c, u in used.items()}
            assert done.returncode == 0 and "requests per second" in done.stdout, (done.stdout, done.stderr)
            out, err = run.communicate(timeout=30)
            assert run.returncode == 0 and err == "", err
            assert '"restored": true' in out
            assert used[redis] > 0.1, "redis had nothing to do"
            assert used[batch] > 0.05, "the batch job starved"
            assert snapshot(here.cgroups, pids) == before
        assert not here.journal.exists()
