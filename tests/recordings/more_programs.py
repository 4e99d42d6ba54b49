"""More real programs, for fitting only: none of them is among those that forecasts are judged by.

The same two rules as in programs.py, which runs them: what is random is drawn from the seed, and each lasts until
``end``.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

Program = Callable[[random.Random, float, Path], None]


def _pause(end: float, seconds: float) -> None:
    time.sleep(max(min(seconds, end - time.monotonic()), 0.0))


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _written(path: Path, data: bytes, mode: str = "ab") -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def serve_git(rng: random.Random, end: float, folder: Path) -> None:
    """Somebody's day in a repository: edits, commits, a search, branches, now and then a garbage collection."""

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words],
            check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    git("init", "-q")
    while time.monotonic() < end:
        for _ in range(rng.choice([1, 3, 20, 60])):
            text = "".join(f"line {rng.randrange(999)}\n" for _ in range(rng.choice([20, 200, 2000])))
            (folder / f"file{rng.randrange(300)}.txt").write_text(text)
        git("add", "-A")
        git("commit", "-q", "-m", "change")
        for _ in range(rng.randrange(3)):
            _pause(end, rng.expovariate(3.0))
            git(*rng.choice([["log", "--stat", "-20"], ["grep", "-c", "line 7"], ["status"], ["diff", "HEAD~1"]]))
        if rng.random() < 0.05:
            git("gc", "-q")
        _pause(end, rng.expovariate(1.0 / rng.choice([0.2, 1.0, 2.5])))


_REPORTS = (
    "sort -n {0}", "sort -k2 {0} | uniq -c", "awk '{{s[$2]+=$1}} END {{for(k in s) print k,s[k]}}' {0}",
    "sort -S 256k {0} > {0}.out; sync {0}.out",
)  # fmt: skip


def serve_sort(rng: random.Random, end: float, folder: Path) -> None:
    """Reports over text files as shells make them: cut, sort, count, with temporary files of their own."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    source = folder / "lines"
    while time.monotonic() < end:
        rows = rng.choice([3000, 20000, 90000])
        source.write_text("".join(f"{rng.randrange(10**7)} {rng.randrange(999)}\n" for _ in range(rows)))
        for _ in range(rng.choice([1, 2, 6])):
            how = rng.choice(_REPORTS)
            subprocess.run(["sh", "-c", how.format(source)], check=False, env=environment, stdout=subprocess.DEVNULL)
            _pause(end, rng.expovariate(1.0 / rng.choice([0.05, 0.3, 1.0])))


def serve_backup(rng: random.Random, end: float, folder: Path) -> None:
    """A tree that changes a little and is packed, synced and pruned again and again."""
    tree = folder / "tree"
    tree.mkdir(exist_ok=True)
    while time.monotonic() < end:
        for _ in range(rng.choice([2, 10, 40])):
            (tree / f"f{rng.randrange(120)}").write_bytes(rng.randbytes(rng.choice([1, 20, 200]) << 10))
            _pause(end, rng.expovariate(60.0))
        packed = folder / f"{rng.randrange(3)}.tar"
        pack = rng.choice(["cat", "lz4 -q -c", "gzip -1 -c", "bzip2 -1 -c"])
        subprocess.run(["sh", "-c", f"tar -cf - -C {folder} tree | {pack} > {packed} && sync {packed}"], check=False)
        _pause(end, rng.choice([0.3, 1.0, 2.0, 4.0]))


def serve_seal(rng: random.Random, end: float, folder: Path) -> None:
    """Files that come in clusters are hashed or encrypted by openssl."""
    source = folder / "blob"
    while time.monotonic() < end:
        source.write_bytes(rng.randbytes(rng.choice([1, 4, 16]) << 20))
        for _ in range(rng.choice([1, 2, 8])):
            how = rng.choice(
                [["dgst", "-sha512"], ["dgst", "-md5"], ["enc", "-aes-256-cbc", "-pbkdf2", "-k", "x", "-in"]]
            )
            subprocess.run(
                ["openssl", *how, str(source)], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _pause(end, rng.expovariate(1.0 / rng.choice([0.02, 0.1, 0.4])))
        _pause(end, rng.expovariate(1.0 / rng.choice([0.2, 1.0])))


def serve_video(rng: random.Random, end: float, folder: Path) -> None:
    """An encoder: a frame every 40 ms whose cost depends on the scene, key frames, a segment that is written out."""
    while time.monotonic() < end:
        fps, scene_ms = rng.choice([12.0, 25.0, 50.0]), rng.choice([2.0, 5.0, 9.0])
        group, segment = rng.choice([12, 25, 50]), rng.choice([25, 50, 100])
        buffered, due = 0, time.monotonic()
        for frame in range(rng.choice([100, 250, 500])):
            if time.monotonic() > end:
                return
            key = frame % group == 0
            _spin(scene_ms * 1e-3 * (2.5 if key else 1.0) * rng.uniform(0.7, 1.3))
            buffered += rng.randrange(2, 8) << (13 if key else 11)
            if frame % segment == segment - 1:
                _written(folder / f"segment{rng.randrange(4)}", rng.randbytes(buffered), "wb")
                buffered = 0
            due = max(due + 1.0 / fps, time.monotonic() - 1.0)
            _pause(end, due - time.monotonic())
        _pause(end, rng.choice([0.0, 0.5, 2.0]))


def serve_log(rng: random.Random, end: float, folder: Path) -> None:
    """Lines that come at a rate that wanders; synced by a timer or when enough have come; rotated and packed."""
    path = folder / "log"
    while time.monotonic() < end:
        rate, every, most = rng.choice([20, 100, 400]), rng.choice([0.2, 0.5, 1.0, 2.0]), rng.choice([50, 500])
        synced, lines = time.monotonic(), 0
        phase_end = min(time.monotonic() + rng.uniform(4.0, 12.0), end)
        while time.monotonic() < phase_end:
            _pause(end, rng.expovariate(rate))
            text = f"{time.time():.6f} {rng.randrange(10**9)} " + "x" * rng.randrange(300)
            sum(hash(word) for word in (text * 20).split("x"))
            lines += 1
            late = time.monotonic() - synced
            if late > every or lines >= most:
                _written(path, (text + "\n").encode() * lines)
                synced, lines = time.monotonic(), 0
        if path.exists() and path.stat().st_size > 1 << 21:
            subprocess.run(["gzip", "-f", str(path)], check=False)


def serve_store(rng: random.Random, end: float, folder: Path) -> None:
    """A log-structured store: group commits, tables flushed when memory is full, merges in a thread of their own."""
    memory, tables, merging = 0, 0, threading.Event()

    def merge(size: int) -> None:
        _spin(size / 20e6)
        _written(folder / "merged", rng.randbytes(min(size, 8 << 20)), "wb")
        merging.clear()

    while time.monotonic() < end:
        rate, group_ms = rng.choice([5, 30, 100]), rng.choice([5, 20, 100])
        phase_end = min(time.monotonic() + rng.uniform(3.0, 10.0), end)
        while time.monotonic() < phase_end:
            _pause(end, rng.expovariate(rate) + group_ms * 1e-3 * rng.random())
            size = rng.choice([1, 4, 40]) << 10
            _spin(2e-4 + size / 60e6)
            _written(folder / "wal", rng.randbytes(size))
            memory += size
            if memory > 1 << 20:
                _written(folder / f"table{tables % 6}", rng.randbytes(memory), "wb")
                (folder / "wal").write_bytes(b"")
                memory, tables = 0, tables + 1
                if tables % 4 == 0 and not merging.is_set():
                    merging.set()
                    threading.Thread(target=merge, args=(4 << 20,), daemon=True).start()


def serve_jobs(rng: random.Random, end: float, folder: Path) -> None:
    """Workers that take jobs with heavy tails from a queue; every result is kept."""
    while time.monotonic() < end:
        rate, mean = rng.choice([1.0, 5.0, 20.0]), rng.choice([0.005, 0.02, 0.06])
        phase_end = min(time.monotonic() + rng.uniform(3.0, 12.0), end)
        while time.monotonic() < phase_end:
            _pause(end, rng.expovariate(rate))
            _spin(min(mean * rng.paretovariate(1.6) / 2.6, 1.0))
            if rng.random() < 0.3:
                _written(folder / "results", rng.randbytes(rng.choice([200, 4000, 60000])))


_NODE = """
const fs = require('fs'); let seed = SEED;
const rnd = () => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed / 2147483648; };
const exp = m => -m * Math.log(1 - rnd());
let think = 40, size = 200, kept = [];
const pick = of => of[Math.floor(rnd() * of.length)];
setInterval(() => { think = pick([10, 40, 150, 600]); size = pick([50, 200, 1500]); }, 6000);
setInterval(() => { const f = fs.openSync('FOLDER/cache.json', 'w'); fs.writeSync(f, JSON.stringify(kept.slice(-50)));
  fs.fsyncSync(f); fs.closeSync(f); }, 1500);
const row = i => ({ id: i, name: 'n' + rnd(), tags: [rnd(), rnd()] });
const serve = () => { const rows = []; for (let i = 0; i < size; i++) rows.push(row(i));
  const back = JSON.parse(JSON.stringify(rows)); back.sort((a, b) => a.name < b.name ? -1 : 1); kept.push(back[0]);
  setTimeout(serve, exp(think)); };
for (let i = 0; i < 3; i++) serve();
"""


def serve_node(rng: random.Random, end: float, folder: Path) -> None:
    """JSON that is read, sorted and written in node by three clients that think, and a cache that is saved."""
    script = folder / "serve.js"
    script.write_text(_NODE.replace("SEED", str(rng.randrange(2**31))).replace("FOLDER", str(folder)))
    child = subprocess.Popen(["node", str(script)])
    _pause(end, end - time.monotonic())
    child.terminate()


def serve_simulate(rng: random.Random, end: float, folder: Path) -> None:
    """A solver in numpy: time steps of a grid that is refined and coarsened, with snapshots every so many."""
    import numpy as np

    while time.monotonic() < end:
        n, every, idle = rng.choice([60, 160, 320]), rng.choice([20, 50, 150]), rng.choice([0.0, 0.004, 0.02])
        grid = np.random.default_rng(rng.randrange(2**31)).random((n, n))
        for step in range(rng.choice([150, 400, 900])):
            if time.monotonic() > end:
                return
            for _ in range(3):
                grid[1:-1, 1:-1] += 0.1 * (
                    grid[:-2, 1:-1] + grid[2:, 1:-1] + grid[1:-1, :-2] + grid[1:-1, 2:] - 4 * grid[1:-1, 1:-1]
                )
            _pause(end, idle)
            if step % every == every - 1:
                _written(folder / "snapshot", grid.tobytes(), "wb")
        _pause(end, rng.expovariate(1.0))


SERVE: dict[str, Program] = {
    "git": serve_git, "sort": serve_sort, "backup": serve_backup, "seal": serve_seal, "video": serve_video,
    "log": serve_log, "store": serve_store, "jobs": serve_jobs, "node": serve_node, "simulate": serve_simulate,
}  # fmt: skip
