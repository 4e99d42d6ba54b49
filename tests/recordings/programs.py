"""Real programs whose load changes: what runs inside each recorded cgroup, and what drives it from outside.

``python programs.py serve NAME`` is put into the cgroup, ``python programs.py drive NAME`` runs beside it (only
for servers). Both end after ``--seconds``. Everything random is drawn from ``--seed``.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import more_programs

PORTS = {"redis": 17379, "http": 17380}


def until(end: float, seconds: float) -> None:
    time.sleep(max(min(seconds, end - time.monotonic()), 0.0))


def serve_redis(rng: random.Random, end: float, folder: Path) -> None:
    command = ["redis-server", "--port", str(PORTS["redis"]), "--bind", "127.0.0.1", "--save", "", "--appendonly",
               "yes", "--dir", str(folder), "--logfile", str(folder / "redis.log")]  # fmt: skip
    _child(command, end)


def drive_redis(rng: random.Random, end: float, folder: Path) -> None:
    """Requests at a rate that changes every few seconds and swings within; each is one pipeline of commands."""
    with _connect(PORTS["redis"]) as link:
        link.sendall(b"".join(_resp("RPUSH", "list", *(str(i) for i in range(k, k + 100))) for k in range(0, 400, 100)))
        link.recv(1 << 16)
        while time.monotonic() < end:
            level, swing, period = rng.choice([3, 10, 30, 60, 90]), rng.random(), rng.uniform(0.5, 4.0)
            phase_end = min(time.monotonic() + rng.uniform(2.0, 9.0), end)
            while time.monotonic() < phase_end:
                rate = level * (1.0 + swing * math.sin(2 * math.pi * time.monotonic() / period)) + 0.5
                time.sleep(min(rng.expovariate(rate), 1.0))
                _pipeline(link, rng, rng.choice([20, 50, 150, 400]))


def _pipeline(link: socket.socket, rng: random.Random, size: int) -> None:
    parts = []
    for _ in range(size):
        kind = rng.random()
        key = f"k{rng.randrange(20000)}"
        if kind < 0.6:
            parts.append(_resp("GET", key))
        elif kind < 0.9:
            parts.append(_resp("SET", key, "x" * rng.choice([20, 200, 2000])))
        else:
            parts.append(_resp("LRANGE", "list", "0", str(rng.choice([20, 200, 399]))))
    link.sendall(b"".join(parts) + _resp("ECHO", "the-end"))
    tail = b""
    while b"the-end" not in tail:
        got = link.recv(1 << 20)
        if not got:
            raise SystemExit("redis went away")
        tail = tail[-16:] + got


def _resp(*words: str) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words)


def serve_http(rng: random.Random, end: float, folder: Path) -> None:
    site = folder / "site"
    site.mkdir()
    for name, size in (("small", 1 << 10), ("page", 40 << 10), ("large", 400 << 10)):
        words = " ".join(str(rng.randrange(10**6)) for _ in range(size // 7))
        (site / f"{name}.html").write_text(words[:size])
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; user root;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log {folder}/access.log; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        "gzip on; gzip_comp_level 4;\n"
        f"server {{ listen 127.0.0.1:{PORTS['http']}; root {site}; }} }}\n"
    )
    _child(["nginx", "-c", str(config), "-p", str(folder)], end)


def drive_http(rng: random.Random, end: float, folder: Path) -> None:
    """wrk with a number of connections that changes, each of which thinks between two requests."""
    with _connect(PORTS["http"]):
        pass
    while time.monotonic() < end - 1.0:
        connections, think = rng.choice([2, 4, 8, 16]), rng.choice([20, 60, 150, 400])
        page = rng.choice(["small", "page", "page", "large"])
        script = folder / "load.lua"
        script.write_text(
            f'math.randomseed({rng.randrange(10**6)})\nwrk.headers["Accept-Encoding"] = "gzip"\n'
            f"function delay() return math.floor(-{think} * math.log(1 - math.random())) end\n"
            f'function request() return wrk.format("GET", "/{page}.html") end\n'
        )
        seconds = min(rng.choice([2, 3, 5, 8]), max(int(end - time.monotonic()), 1))
        url = f"http://127.0.0.1:{PORTS['http']}/"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        until(end, rng.choice([0.0, 0.2, 1.0]))


def serve_sqlite(rng: random.Random, end: float, folder: Path) -> None:
    """Transactions that come in waves, a report now and then, checkpoints when the log is full."""
    base = sqlite3.connect(folder / "shop.db", isolation_level=None)
    base.execute("pragma journal_mode=wal")
    base.execute("pragma synchronous=full")
    base.execute("create table orders (id integer primary key, customer int, amount real, note text)")
    base.execute("create index by_customer on orders (customer)")
    while time.monotonic() < end:
        rate, phase_end = rng.choice([4, 15, 40, 80]), time.monotonic() + rng.uniform(3.0, 10.0)
        while time.monotonic() < min(phase_end, end):
            until(end, rng.expovariate(rate))
            base.execute("begin")
            for _ in range(rng.choice([1, 3, 10, 60])):
                row = (rng.randrange(5000), rng.random() * 100, "n" * rng.randrange(300))
                base.execute("insert into orders (customer, amount, note) values (?, ?, ?)", row)
            base.execute("select sum(amount) from orders where customer = ?", (rng.randrange(5000),)).fetchone()
            base.execute("commit")
            if rng.random() < 0.01:
                base.execute("select customer, sum(amount) s from orders group by customer order by s").fetchall()
        if rng.random() < 0.5:
            base.execute("pragma wal_checkpoint(truncate)")


def serve_compress(rng: random.Random, end: float, folder: Path) -> None:
    """Files that are packed by zstd or xz, with pauses as long as a queue of jobs has them."""
    source = folder / "data"
    words = [f"{rng.randrange(10**4)}" for _ in range(2000)]
    while time.monotonic() < end:
        source.write_text(" ".join(rng.choices(words, k=rng.choice([2, 8, 20]) * 20000)))
        how = rng.choice([["zstd", "-3"], ["zstd", "-9"], ["zstd", "-15"], ["xz", "-1"], ["gzip", "-6"]])
        subprocess.run([*how, "-q", "-k", "-f", str(source)], check=False)
        until(end, rng.expovariate(1.0 / rng.choice([0.1, 0.5, 1.5])))


def serve_train(rng: random.Random, end: float, folder: Path) -> None:
    """Epochs of a small network in numpy: steps that wait for data, an evaluation, a checkpoint that is synced."""
    import numpy as np

    g = np.random.default_rng(rng.randrange(2**31))
    while time.monotonic() < end:
        width, batch = rng.choice([128, 256, 384]), rng.choice([64, 128, 256])
        w1, w2 = g.normal(size=(width, width)) * 0.05, g.normal(size=(width, 10)) * 0.05
        data_ms = rng.choice([2.0, 8.0, 20.0])
        for step in range(rng.choice([60, 150, 300])):
            if time.monotonic() > end:
                return
            x, y = g.normal(size=(batch, width)), g.normal(size=(batch, 10))
            h = np.maximum(x @ w1, 0.0)
            e = h @ w2 - y
            back = (e @ w2.T) * (h > 0)
            w2 -= 1e-3 / batch * h.T @ e
            w1 -= 1e-3 / batch * x.T @ back
            until(end, rng.expovariate(1000.0 / data_ms))
            if step % 50 == 49:
                for _ in range(6):
                    np.maximum(g.normal(size=(512, width)) @ w1, 0.0) @ w2
        with (folder / "checkpoint.bin").open("wb") as file:
            file.write(w1.tobytes() * rng.choice([1, 4]))
            file.flush()
            os.fsync(file.fileno())
        until(end, rng.uniform(0.1, 1.5))


def serve_compile(rng: random.Random, end: float, folder: Path) -> None:
    """A project that somebody works on: a few files change, two are built at a time."""
    while time.monotonic() < end:
        jobs: list[subprocess.Popen[bytes]] = []
        for k in range(rng.choice([1, 2, 5, 9])):
            source = folder / f"unit{k}.c"
            source.write_text("".join(_c_function(rng, i) for i in range(rng.choice([10, 40, 120]))))
            jobs.append(subprocess.Popen(["gcc", rng.choice(["-O0", "-O2"]), "-c", str(source), "-o", f"{source}.o"]))
            if len(jobs) == 2:
                jobs.pop(0).wait()
        for job in jobs:
            job.wait()
        until(end, rng.expovariate(1.0 / rng.choice([0.3, 1.0, 3.0])))


def _c_function(rng: random.Random, i: int) -> str:
    body = "".join(
        f"  for (int k = 0; k < {rng.randrange(2, 50)}; k++)"
        f" if (a[k] > {rng.randrange(100)}) s += a[k] * {rng.random()};\n"
        for _ in range(rng.randrange(2, 10))
    )
    return f"double f{i}(const double *a) {{\n  double s = 0;\n{body}  return s;\n}}\n"


def serve_stamps(rng: random.Random, end: float, folder: Path) -> None:
    """A language model server as its CPU sees it: a burst for each prompt, then steps shared by all that generate.

    Requests come at the times in the CSV file that FORESHARE_STAMPS names (columns TIMESTAMP, ContextTokens,
    GeneratedTokens), from a random place in it on; without one, in random clusters.
    """
    arrivals = _stamps(rng, end - time.monotonic())
    begun = time.monotonic()
    waiting: list[tuple[int, int]] = []
    active: list[int] = []
    while time.monotonic() < end:
        now = time.monotonic() - begun
        while arrivals and arrivals[0][0] <= now:
            waiting.append(arrivals.pop(0)[1:])
        if waiting:
            context, generated = waiting.pop(0)
            _spin(min(context, 4000) * 12e-6)
            active.append(generated)
        if active:
            _spin(0.002 + 0.0004 * len(active))
            active = [left - 4 for left in active if left > 4]
            until(end, 0.025)
        elif not waiting:
            until(end, 0.01)


def _stamps(rng: random.Random, seconds: float) -> list[tuple[float, int, int]]:
    path = os.environ.get("FORESHARE_STAMPS", "")
    if path:
        with Path(path).open(newline="") as file:
            rows = [
                (_seconds(r["TIMESTAMP"]), int(r["ContextTokens"]), int(r["GeneratedTokens"]))
                for r in csv.DictReader(file)
            ]  # fmt: skip
        first = rng.uniform(rows[0][0], rows[-1][0] - seconds)
        return [(t - first, c, g) for t, c, g in rows if first <= t < first + seconds]
    out, t = [], 0.0
    while t < seconds:
        t += rng.expovariate(2.0)
        out += [
            (t + rng.expovariate(5.0), rng.randrange(50, 4000), rng.randrange(10, 500))
            for _ in range(rng.choice([1, 1, 3, 8]))
        ]
    return sorted(out)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26]).timestamp()


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _connect(port: int) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30.0)
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


def _child(command: list[str], end: float) -> None:
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        child.wait(max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        child.terminate()
        child.wait()


SERVE = {
    "redis": serve_redis, "http": serve_http, "sqlite": serve_sqlite, "compress": serve_compress,
    "train": serve_train, "compile": serve_compile, "stamps": serve_stamps, **more_programs.SERVE,
}  # fmt: skip
DRIVE = {"redis": drive_redis, "http": drive_http}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "drive"))
    parser.add_argument("name", choices=tuple(SERVE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    a = parser.parse_args()
    folder = a.folder / f"{a.what}-{a.name}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{a.name} {a.seed}")
    end = time.monotonic() + a.seconds * 1.6  # ended from outside: a busy machine records for longer
    try:
        (SERVE if a.what == "serve" else DRIVE)[a.name](rng, end, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
