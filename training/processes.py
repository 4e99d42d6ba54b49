"""A pool of processes for runs that are each a function of their arguments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def process_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of ``jobs`` processes. On the way out, what has not begun is dropped and what has is waited for."""
    # forkserver: a fork of a process with threads (a progress bar's, BLAS's) may hang.
    context = multiprocessing.get_context("forkserver")
    with _single_threaded():
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Leave Ctrl-C to the parent, which lets the runs in progress end and keeps what is done; end when it is killed.

    Nothing else would end them: workers keep the fork server alive, which keeps them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Start processes whose BLAS has one thread: they share the CPUs, and sums come out the same for any number."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
