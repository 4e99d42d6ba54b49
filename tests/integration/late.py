"""How much of a measured time the machine's other work is to blame for."""

from __future__ import annotations

import threading
import time


class Late:
    """By how much sleeps of 5 ms were late, all together, in a thread of its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            time.sleep(0.005)
            self.seconds += time.monotonic() - began - 0.005

    def __enter__(self) -> Late:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
