"""What a terminal shows during and after a run: it fits, it cannot be hijacked, and it never holds up the run."""

import io
import math
import re
import threading
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.policies.host import Isolation, R
from foreshare.runtime.runlog import NOBODY, SEVERAL, Event
from foreshare.runtime.tables import TOLERANCE, number, policy_share_pct, printable, summary_rows, summary_table
from foreshare.runtime.view import LiveView, ProgressLine, Snapshot, open_view
from foreshare.runtime.view.frame import Painter, bar, compact, plain
from foreshare.runtime.view.live import ENTER, LEAVE

HOSTILE = [
    "\x1b[2Jgone",
    "two\nlines",
    "数据库服务器-生产环境-一",
    "x" * 300,
    "\u202eevil",
    "",
    "lone \ud800",
    "tab\tbed",
]
GLYPHS = "█┃▒·"
CLASSES = [i.name.lower() for i in Isolation]  # as runtime/observers.py names them


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Ascii(Terminal):
    encoding = "ascii"

    def write(self, text):
        text.encode("ascii")
        return super().write(text)


class Stuck(Terminal):
    """A terminal on which somebody pressed Ctrl-S."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text):
        self.go_on.wait(30)
        return super().write(text)


class Gone(Terminal):
    def write(self, text):
        raise OSError(5, "Input/output error")


def make_meta(n=16, cpus=32, names=None):
    return {
        "hal": "simulated", "policy": "water-filling", "scenario": "mixed", "seed": 1, "tick_ms": 10,
        "vm_names": [names[i % len(names)] if names else f"vm-{i}" for i in range(n)],
        "vm_isolation": [CLASSES[i % 3] for i in range(n)], "vm_priority": [i % 9 for i in range(n)],
        "units": {"cpu": "1/10 CPU", "cache": "way", "memory": "10 % MBA", "io": "1 %"},
        "movable": {"cpu": True, "cache": True, "memory": True, "io": True},
        "cpu_ids": list(range(100, 100 + cpus)), "cpu_zone": [int(i >= cpus // 2) for i in range(cpus)],
    }  # fmt: skip


def make_snapshot(n=16, managed=32, *, t_s=1.0, total=30.0, ticks=100, short=(), **changes):
    allocation = np.full((n, R), 10.0)
    demand = np.full((n, R), 5.0)
    for rank, vm in enumerate(short):
        demand[vm] = 40.0 - rank
    owner = np.arange(managed) % n if n else np.full(managed, NOBODY)
    fields = {
        "t_s": t_s, "seconds_total": total, "ticks": ticks, "missed_ticks": 2, "by_policy": ticks - 1, "by_fallback": 1,
        "demand": demand, "usage": np.minimum(demand, allocation), "allocation": allocation, "cpu_owner": owner,
        "decision_p50_us": 210.0, "decision_p99_us": 480.0, "contentions": 12,
        "events": tuple(Event(k * 10**9, "contention", k % n if n else -1, f"event {k}") for k in range(6)),
    }  # fmt: skip
    return Snapshot(**(fields | changes))


def frame_of(snapshot, meta, width=80, height=24, **options):
    return plain(Painter(meta, **options).frame(snapshot, width, height, 0.0))


def drawn(stream, at_least=1):
    """Wait until the writing thread has written so many frames."""
    for _ in range(2000):
        if stream.getvalue().count("\x1b[H") >= at_least:
            return stream.getvalue()
        time.sleep(0.001)
    raise AssertionError("nothing was drawn")


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60), (40, 10), (20, 4), (1, 1)])
@pytest.mark.parametrize("n", [0, 1, 16, 256])
@pytest.mark.parametrize("names", [None, HOSTILE])
def test_a_frame_fits_the_terminal_and_holds_no_control_characters(size, n, names):
    from rich.cells import cell_len

    width, height = size
    lines = frame_of(make_snapshot(n, 64), make_meta(n, 64, names), width, height)
    assert len(lines) <= height
    for line in lines:
        assert cell_len(line) <= width
        assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in line)


def test_80_by_24_shows_what_matters():
    lines = frame_of(make_snapshot(), make_meta())
    text = "\n".join(lines)
    assert lines[0].startswith("foreshare · water-filling · simulated")
    assert lines[0].endswith("1.0 of 30.0 s")
    assert "100 ticks, 2 missed · 99.0 % policy · 12 contentions · p50 210 p99 480 us" in lines[1]
    assert lines[2].startswith("cores abcdefghijklmnop abcdef")  # the gap is the border between two zones
    for row in (r"^a vm-0 +shr +0 ", r"^b vm-1 +iso +1 +2 101,117 ", r"^c vm-2 +sec +2 "):
        assert re.search(row, text, re.M)
    assert "event 5" in text


def test_rows_keep_their_order_while_all_fit():
    lines = frame_of(make_snapshot(8, short=(5, 2)), make_meta(8))
    assert [m for line in lines if (m := line[2:6].strip()).startswith("vm-")] == [f"vm-{i}" for i in range(8)]


def test_what_does_not_fit_is_counted_and_the_worst_come_first():
    lines = frame_of(make_snapshot(64, short=(40, 7, 63)), make_meta(64))
    rows = [line.split()[1] for line in lines if re.match(r"\S vm-", line)]
    assert rows[:3] == ["vm-40", "vm-7", "vm-63"]
    assert f"and {64 - len(rows)} more" in "\n".join(lines)
    assert len(lines) == 24
    assert len(rows) >= 10


def test_a_vm_in_the_shared_cache_class_does_not_count_as_lacking():
    snapshot = make_snapshot(64, short=(9,))
    snapshot.allocation[:, 1] = 0.0
    snapshot.demand[:, 1] = 1000.0
    rows = [line for line in frame_of(snapshot, make_meta(64)) if re.match(r"\S vm-", line)]
    assert rows[0].split()[1] == "vm-9"


def test_core_strip_tells_nobody_and_several_apart_and_says_when_it_is_cut():
    owner = np.array([0, NOBODY, SEVERAL, 1])
    assert frame_of(make_snapshot(2, cpu_owner=owner), make_meta(2, 4))[2] == "cores a· *b"
    lines = frame_of(make_snapshot(2, 1000), make_meta(2, 1000))
    assert sum(re.match(r"(cores |      )[ab ]+…?$", line) is not None for line in lines) == 3
    assert lines[4].endswith("…")


def test_cpus_that_vms_share_are_listed_where_they_are_known():
    may_run = np.zeros((2, 8), bool)
    may_run[0, [0, 1, 2, 7]] = True
    snapshot = make_snapshot(2, 8, cpu_owner=np.full(8, SEVERAL), cpus=may_run)
    text = "\n".join(frame_of(snapshot, make_meta(2, 8), 140, 24))
    assert "4 100-102,107" in text
    assert "0 shared" in text


def test_missing_readings_and_immovable_resources():
    snapshot = make_snapshot(3)
    for array in (snapshot.demand, snapshot.usage, snapshot.allocation):
        array[:] = np.nan
    meta = make_meta(3)
    assert any("?" in line for line in frame_of(snapshot, meta, 120))
    meta["movable"] = {"cpu": True, "cache": False, "memory": False, "io": False}
    titles = next(line for line in frame_of(make_snapshot(3), meta) if " VM " in line)
    assert titles.split() == ["VM", "iso", "pri", "CPUs", "cpu", "held"]
    meta["movable"] = dict.fromkeys(meta["movable"], False)
    assert frame_of(make_snapshot(3), meta)


def test_an_empty_meta_and_no_cpus():
    assert frame_of(make_snapshot(2, 0), {})


numbers = st.one_of(st.floats(0, 1e5), st.sampled_from([math.nan, math.inf, 0.0]))


@given(numbers, numbers, st.floats(0, 1e4), st.integers(0, 40))
def test_a_bar_is_as_long_as_it_should_be(allocation, demand, scale, width):
    pieces = bar(allocation, demand, scale, width, GLYPHS)
    text = "".join(t for t, _ in pieces)
    assert len(text) == width
    if width and scale > 0 and math.isfinite(allocation) and math.isfinite(demand):
        assert text.count("┃") == 1
        assert ({role for t, role in pieces if "┃" in t} == {"short"}) == (demand > TOLERANCE * allocation)


def test_bars_show_shortage_without_colour():
    assert "".join(t for t, _ in bar(4, 8, 10, 10, GLYPHS)) == "████▒▒▒▒┃·"
    assert "".join(t for t, _ in bar(8, 4, 10, 10, GLYPHS)) == "████┃███··"
    assert "".join(t for t, _ in bar(5, 5.2, 10, 10, GLYPHS)) == "█████┃····"  # near enough
    assert "".join(t for t, _ in bar(5, math.nan, 10, 10, GLYPHS)) == "█████·····"


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_say_exactly_the_cpus(cpus):
    text = compact(sorted(cpus), 10_000)
    back = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        back |= set(range(int(low), int(high or low) + 1))
    assert back == cpus
    assert len(compact(sorted(cpus), 7)) <= 7


def test_the_screen_is_given_back_also_after_an_exception():
    stream = Terminal()
    with pytest.raises(RuntimeError, match="boom"), LiveView(make_meta(), stream=stream, size=(80, 24)) as view:
        for _ in range(2000):
            if view.update(make_snapshot()):
                break
            time.sleep(0.001)
        raise RuntimeError("boom")
    text = stream.getvalue()
    assert text.startswith(ENTER)
    assert text.endswith(LEAVE)
    assert "foreshare" in text


def test_at_most_ten_frames_a_second(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("foreshare.runtime.view.live.time.monotonic", lambda: clock[0])
    stream = Terminal()
    frames = 0
    with LiveView(make_meta(), stream=stream, size=(80, 24)) as view:
        for _ in range(300):  # three seconds of ticks
            before = frames
            frames += view.update(make_snapshot())
            if frames > before:
                drawn(stream, frames)
                while not view._writer.ready:
                    time.sleep(0.0005)
            clock[0] += 0.01
            if not frames:
                time.sleep(0.001)
    assert 20 <= frames <= 31


def test_a_terminal_that_does_not_read_never_holds_up_the_run():
    stream = Stuck()
    began = time.monotonic()
    with LiveView(make_meta(), stream=stream, size=(80, 24)) as view:
        assert not any(view.update(make_snapshot()) for _ in range(1000))
        assert time.monotonic() - began < 2.0
        writer = view._writer
        stream.go_on.set()
    writer._thread.join(10)
    assert stream.getvalue() == ENTER + LEAVE  # the screen is given back once it reads again


def test_a_terminal_that_is_gone_costs_the_view_not_the_run():
    with LiveView(make_meta(), stream=Gone(), size=(80, 24)) as view:
        view._writer._thread.join(10)
        assert not view.update(make_snapshot())
        assert not view.due()


def test_an_ascii_terminal_gets_ascii():
    stream = Ascii()
    with LiveView(make_meta(8, names=HOSTILE), stream=stream, size=(120, 30)) as view:
        while not view.update(make_snapshot(8, short=(1,))):
            time.sleep(0.001)
        drawn(stream)
    assert "#" in stream.getvalue()


def test_a_frame_overwrites_the_one_before():
    stream = Terminal()
    with LiveView(make_meta(), stream=stream, size=(80, 24)) as view:
        while not view.update(make_snapshot()):
            time.sleep(0.001)
        frame = drawn(stream).split("\x1b[H")[1]
    body = frame.partition("\x1b[J")[0]
    assert body.count("\n") == 23
    assert body.count("\x1b[K") == 24


def test_progress_lines_are_plain_and_few():
    stream = io.StringIO()
    meta = make_meta() | {"policy": HOSTILE[0]}
    with ProgressLine(meta, stream) as view:
        for k in range(1, 3001):
            view.update(make_snapshot(t_s=k / 100, ticks=k, missed_ticks=0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert " 50% 15.0/30.0 s, 1,500 ticks" in lines[4]
    assert not any(unicodedata.category(c) == "Cc" for line in lines for c in line)


def test_progress_without_an_end_speaks_every_few_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("foreshare.runtime.view.live.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with ProgressLine(make_meta(), stream) as view:
        for k in range(2000):
            clock[0] = k / 100
            if view.due():
                view.update(make_snapshot(t_s=k / 100, total=None))
    assert len(stream.getvalue().splitlines()) == 3
    assert ProgressLine(make_meta(), Gone()).update(make_snapshot(total=None, t_s=9.0)) in {True, False}


def test_the_view_suits_the_stream():
    assert isinstance(open_view({}, Terminal(), term="xterm-256color"), LiveView)
    for stream, term in ((Terminal(), "dumb"), (Terminal(), ""), (io.StringIO(), "xterm")):
        assert isinstance(open_view({}, stream, term=term), ProgressLine)


SUMMARY = {
    "ticks": 3000, "missed_ticks": 3, "decided_by": {"policy": 2999, "fallback": 1}, "slo_violation_pct": 3.2,
    "utilisation_pct": 71.04, "contentions": 12345, "decision_us": {"p50": 210.4, "p99": 480, "p999": 900},
    "tick_us": {"p50": 300, "p99": 1234}, "policy": "water-filling",
}  # fmt: skip
STATIC = SUMMARY | {"slo_violation_pct": 14.0, "utilisation_pct": 48, "contentions": 20000, "policy": "static"}


def test_the_summary_table_in_plain_text():
    text = summary_table(SUMMARY, STATIC)
    lines = text.splitlines()
    assert lines[0].split() == ["foreshare", "(water-filling)", "static"]
    rows = {m[0].strip(): m[1:] for line in lines[2:] if (m := re.split(r"  +", line))}
    assert rows == {
        "SLO violations %": ["3.20", "14.00"], "utilisation %": ["71.0", "48.0"],
        "contention events": ["12,345", "20,000"], "missed ticks": ["3", "3"],
        "tick p50 / p99 µs": ["300 / 1,234", "300 / 1,234"], "decision p50 / p99 µs": ["210 / 480", "210 / 480"],
        "decided by policy %": ["99.97", "99.97"],
    }  # fmt: skip
    assert "\x1b" not in text
    assert text.endswith("\n")


def test_the_summary_table_on_a_terminal_and_in_ascii():
    styled = summary_table(SUMMARY, STATIC, Terminal())
    assert "SLO violations" in styled
    assert "14.00" in styled
    summary_table(SUMMARY, STATIC, Ascii()).encode("ascii")


def test_the_summary_table_without_baseline_or_values():
    assert "static" not in summary_table(SUMMARY, None)
    assert summary_table({}, {}).count("–") == 14
    assert (
        summary_table({"slo_violation_pct": None, "decided_by": 5, "tick_us": {"p50": 1.0}}, None).count("1 / –") == 1
    )
    assert "\x1b" not in summary_table({"policy": "\x1b[2J"}, None)


def test_verdicts_follow_the_direction_of_each_number():
    verdict = {row.label: row.verdict for row in summary_rows(SUMMARY, STATIC)}
    assert verdict["SLO violations %"] == verdict["utilisation %"] == verdict["contention events"] == 1
    assert verdict["missed ticks"] == verdict["tick p50 / p99 µs"] == 0
    assert {row.verdict for row in summary_rows(STATIC, SUMMARY)} == {-1, 0}
    assert {row.verdict for row in summary_rows(SUMMARY, None)} == {0}


def test_nobody_decided():
    assert math.isnan(policy_share_pct({"decided_by": {"policy": 0, "fallback": 0}}))
    assert math.isnan(number("12"))


@given(st.text(), st.integers(1, 80))
def test_printable_text_is_short_harmless_and_one_line(text, limit):
    out = printable(text, limit)
    assert len(out) <= limit
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in out)
    out.encode("utf-8")
    assert printable(out, limit) == out


def test_printable_does_not_walk_through_megabytes():
    began = time.perf_counter()
    assert printable("x" * 50_000_000, 20) == "x" * 19 + "…"
    assert time.perf_counter() - began < 1.0
