"""A run as it happens: a live view of the host on a terminal, one line now and then elsewhere.

Frames are composed by the caller's thread and written by another one: a terminal that stops reading (Ctrl-S, a slow
link) costs frames, never a tick.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from foreshare.runtime.tables import amount, encodable, printable

from .frame import Painter
from .snapshot import Snapshot

if TYPE_CHECKING:
    from rich.console import Console


REDRAW_S = 0.1
LINE_EVERY_S = 5.0
ASK_EVERY_S = 0.05
ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
DRAIN_S = 1.0
"""How long leaving waits for a terminal that does not read."""


class FrameWriter:
    """Writes text to a stream from a thread of its own; what comes while it is busy is refused, not queued."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._wake = threading.Condition()
        self._text = self._last = ""
        self._busy = False
        self._closed = False
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="foreshare-view", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether a frame offered now would be written."""
        return not (self._busy or self._broken or self._closed)

    def offer(self, text: str) -> bool:
        """Write ``text`` soon and return True, or return False because an earlier one is still being written."""
        with self._wake:
            if not self.ready:
                return False
            self._text, self._busy = text, True
            self._wake.notify()
        return True

    def close(self, last: str, wait_s: float) -> None:
        """Have ``last`` written after the frame under way, and stop; wait for that at most ``wait_s``."""
        with self._wake:
            self._last, self._closed = last, True
            self._wake.notify()
        self._thread.join(wait_s)

    def _work(self) -> None:
        try:
            while text := self._next():
                self._stream.write(text)
                self._stream.flush()
                self._busy = False
            self._stream.write(self._last)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: the run goes on without its view
            self._broken = True

    def _next(self) -> str:
        """Wait for a frame and return it, "" once closed. A frame that was accepted is still written."""
        with self._wake:
            self._wake.wait_for(lambda: self._busy or self._closed)
            return self._text if self._busy else ""


class LiveView:
    """Draws the host on a terminal, at most ten times a second, on a screen that is given back on leaving.

    ``meta`` is that of the run log. ``size`` (columns, rows) overrides what the terminal says.
    """

    def __init__(
        self, meta: Mapping[str, Any], *, stream: TextIO | None = None, size: tuple[int, int] | None = None
    ) -> None:
        self._meta = meta
        self._stream = stream if stream is not None else sys.stdout
        self._size = size
        self._writer: FrameWriter | None = None
        self._console: Console | None = None
        self._next_s = 0.0
        self._painter: Painter | None = None

    def __enter__(self) -> Self:
        from rich.console import Console

        self._console = Console(
            file=self._stream, force_terminal=True, highlight=False, legacy_windows=False,
            width=self._size[0] if self._size else None, height=self._size[1] if self._size else None,
        )  # fmt: skip
        ascii_only = not _speaks_unicode(self._stream)
        self._painter = Painter(self._meta, ascii_only=ascii_only)
        self._writer = FrameWriter(self._stream)
        self._writer.offer(ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close(LEAVE, DRAIN_S)
            self._writer = None

    def due(self) -> bool:
        """Whether :meth:`update` would draw now: lets the loop build no snapshot in vain."""
        return self._writer is not None and self._writer.ready and time.monotonic() >= self._next_s

    def update(self, snapshot: Snapshot) -> bool:
        """Draw ``snapshot`` and return True, or return False because the last frame is too young or still under way."""
        if not self.due() or self._writer is None or self._console is None or self._painter is None:
            return False
        now_s = time.monotonic()
        self._next_s = now_s + REDRAW_S
        width, height = self._console.size
        lines = self._painter.frame(snapshot, width, height, now_s)
        with self._console.capture() as capture:
            self._console.print(self._painter.joined(lines), end="")
        # Every line is cleared to its end and the rest of the screen below: no flicker, and nothing stale stays.
        frame = "\x1b[H" + capture.get().replace("\n", "\x1b[K\n") + "\x1b[K\x1b[J"
        return self._writer.offer(encodable(frame, self._stream))


class ProgressLine:
    """Says how far a run has come in one plain line every ten percent or few seconds, where nobody watches live."""

    def __init__(self, meta: Mapping[str, Any], stream: TextIO | None = None) -> None:
        self._meta = meta
        self._stream = stream if stream is not None else sys.stderr
        self._next_s = self._ask_s = 0.0
        self._next_frac = 0.0

    def __enter__(self) -> Self:
        self._next_s = time.monotonic() + LINE_EVERY_S
        self._next_frac = 0.1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind: every line is complete."""

    def due(self) -> bool:
        """Whether it is worth asking: whether enough is done, only :meth:`update` can tell."""
        return time.monotonic() >= self._ask_s

    def update(self, snapshot: Snapshot) -> bool:
        """Write a line and return True where one is due."""
        now_s = time.monotonic()
        self._ask_s = now_s + ASK_EVERY_S
        total = snapshot.seconds_total
        done = snapshot.t_s / total if total else 0.0
        if not (now_s >= self._next_s or (total and done >= self._next_frac)):
            return False
        self._next_s = now_s + LINE_EVERY_S
        self._next_frac = (int(done * 10 + 1e-9) + 1) / 10
        # A closed pipe is the reader's choice; the run goes on.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(encodable(self._line(snapshot, total, done), self._stream) + "\n")
            self._stream.flush()
        return True

    def _line(self, s: Snapshot, total: float | None, done: float) -> str:
        where = f"{min(done, 1.0):4.0%} {s.t_s:.1f}/{total:.1f} s" if total else f"{s.t_s:.1f} s"
        missed = f", {s.missed_ticks:,} missed" if s.missed_ticks else ""
        fallback = f", {s.by_fallback:,} by fallback" if s.by_fallback else ""
        return (
            f"{printable(self._meta.get('policy', 'foreshare'), 24)}: {where}, {s.ticks:,} ticks{missed}{fallback},"
            f" {s.contentions:,} contentions, p50 {amount(s.decision_p50_us)} p99 {amount(s.decision_p99_us)} us"
        )


def open_view(meta: Mapping[str, Any], stream: TextIO, *, term: str) -> LiveView | ProgressLine:
    """Return the view that suits ``stream``: live on a terminal, else lines. ``term``: the TERM of the environment."""
    if stream.isatty() and term not in {"", "dumb"}:
        return LiveView(meta, stream=stream)
    return ProgressLine(meta, stream)


def _speaks_unicode(stream: TextIO) -> bool:
    return encodable("█┃▒·", stream) == "█┃▒·"
