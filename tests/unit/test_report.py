"""The HTML report: complete, self-contained and harmless, whatever the log holds."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import Isolation, R, Resource
from foreshare.runtime import report
from foreshare.runtime.report import figures, html
from foreshare.runtime.report.page import PALETTE
from foreshare.runtime.report.run import Run, vm_colours, vms_of_interest
from foreshare.runtime.report.sections import together
from foreshare.runtime.runlog import NOBODY, SEVERAL, STAGES, Event, RunLog

CLASSES = [i.name.lower() for i in Isolation]  # as runtime/observers.py names them
VOID = {"meta", "input", "br", "img", "use", "path", "rect", "image", "line", "circle"}
SVG_NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
HOSTILE = (
    "<script>alert(1)</script>", "two\nlines\x1b[2J", "x" * 300, "\u202egnp.exe", '"><img src=x onerror=y>',
    "$\\frac{$", "lone \ud800 surrogate", "", "&lt;b&gt;", "Z" + "\u0301" * 50,
)  # fmt: skip


def make_log(n=3, cpus=8, rows=120, *, names=None, events=True, seed=0):
    rng = np.random.default_rng(seed)
    meta = {
        "hal": "simulated", "policy": "water-filling", "tick_ms": 10, "scenario": "mixed", "seed": seed,
        "vm_names": [names[i % len(names)] if names else f"vm-{i}" for i in range(n)],
        "vm_uuids": [f"uuid-{i}" for i in range(n)], "vm_isolation": [CLASSES[i % 3] for i in range(n)],
        "vm_priority": [i % 7 for i in range(n)],
        "units": {"cpu": "1/10 CPU", "cache": "way", "memory": "10 % MBA", "io": "1 % of io.max"},
        "capacity": {"cpu": 10 * cpus, "cache": 12, "memory": 10, "io": 100},
        "movable": {"cpu": True, "cache": True, "memory": True, "io": True},
        "cpu_ids": list(range(cpus)), "cpu_zone": [int(i >= cpus // 2) for i in range(cpus)],
        "reservation": [[10, 1, 1, 5]] * n, "cap": [[40, 6, 5, 50]] * n, "versions": {"foreshare": "0.1.0"},
    }  # fmt: skip
    log = RunLog.for_run(ticks=rows, n=n, cpus=cpus, meta=meta)
    s = log.series
    t = len(s["t_ns"])
    s["t_ns"][:] = np.arange(t) * 10_000_000
    s["demand"][:] = rng.gamma(2.0, 5.0, (t, n, R))
    s["allocation"][:] = rng.integers(1, 20, (t, n, R))
    s["usage"][:] = np.minimum(s["demand"], s["allocation"])
    s["cpu_owner"][:] = rng.integers(-2, max(n, 1), (t, cpus)) if n else NOBODY
    s["stage_us"][:] = rng.gamma(3.0, 20.0, (t, len(STAGES)))
    log.rows = rows
    if events:
        kinds = ("contention", "throttled", "migrate", "fallback")
        log.events = [Event(k * 10_000_000, kinds[k % 4], k % n if n else -1, f"event {k}") for k in range(rows)]
    log.summary = {
        "ticks": rows, "missed_ticks": 2, "decided_by": {"policy": rows - 1, "fallback": 1}, "slo_violation_pct": 3.21,
        "utilisation_pct": 70.5, "contentions": 17, "decision_us": {"p50": 200.0, "p99": 400.0, "p999": 600.0},
        "tick_us": {"p50": 300.0, "p99": 500.0}, "policy": "water-filling", "restored": True,
    }  # fmt: skip
    return log


class Reader(HTMLParser):
    """Collects what a browser would fetch or run, and checks that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags, self.handlers, self.ids, self.text = [], [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        self.links += [v for k, v in attrs if k in {"src", "href", "xlink:href", "action", "data"}]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


def check_harmless(document):
    reader = read(document)
    assert not reader.tags & {"script", "iframe", "object", "embed", "link", "img", "form"}
    assert reader.handlers == []
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert set(re.findall(r"https?://[^\"'<> ]*", document)) <= SVG_NAMESPACES
    assert len(reader.ids) == len(set(reader.ids)), "an id occurs twice: clips and tabs would mix up"
    anchors = {link[1:] for link in reader.links if link.startswith("#")}
    assert anchors <= set(reader.ids)
    document.encode("utf-8")
    return reader


def test_a_report_beside_its_baseline_is_complete_and_self_contained():
    log, base = make_log(), make_log(seed=1)
    base.summary = base.summary | {"slo_violation_pct": 14.5, "policy": "static"}
    document = report.render(log, base)
    reader = check_harmless(document)
    text = " ".join(reader.text)
    for word in (
        "3.21",
        "14.50",
        "fewer than",
        "vm-2",
        "NUMA",
        "contention",
        "1/10 CPU",
        "uuid-0",
        "0.1.0",
        "event 119",
    ):
        assert (word in text) == (word != "uuid-0"), word
    assert document.count("<svg") == 2 * 4 + 3 * 4 + 1 + 2 + 1  # host, VMs, cores, ticks, events


def test_a_run_that_did_worse_is_not_praised():
    log, base = make_log(), make_log()
    base.summary = base.summary | {"slo_violation_pct": 1.0}
    document = report.render(log, base)
    assert "<b>more</b> than" in document
    assert 'class="bad"' in document


def test_hostile_names_and_texts_stay_text():
    log = make_log(n=len(HOSTILE), rows=20, names=HOSTILE)
    log.events += [Event(5, HOSTILE[0], i, name) for i, name in enumerate(HOSTILE)]
    for key in ("hal", "policy", "scenario"):
        log.meta[key] = HOSTILE[4]
    log.meta["units"] = dict.fromkeys(log.meta["units"], HOSTILE[5] + HOSTILE[0])
    log.meta["vm_isolation"][0] = HOSTILE[0]
    log.summary["policy"] = HOSTILE[0]
    document = report.render(log)
    reader = check_harmless(document)
    assert "\u202e" not in document
    assert "\x1b" not in document
    assert "x" * 160 not in document
    assert "\u0301" * 3 not in document
    assert any("<script>alert(1)</script>" in t for t in reader.text)  # shown as what it is


@pytest.mark.parametrize(("n", "cpus", "rows"), [(0, 8, 50), (1, 1, 1), (2, 0, 5), (0, 0, 0), (3, 8, 2), (1, 4, 0)])
def test_small_and_empty_runs(n, cpus, rows):
    log = make_log(n=n, cpus=cpus, rows=max(rows, 1))
    log.rows = rows
    log.events = log.events[:rows]
    check_harmless(report.render(log))
    check_harmless(report.render(log, log))


def test_nothing_measured():
    log = make_log(rows=30)
    for key in ("demand", "usage", "allocation", "stage_us"):
        log.series[key][:] = np.nan
    log.summary = {}
    document = report.render(log, log)
    check_harmless(document)
    assert document.count("not measured") == 3 * 4
    assert "no SLO figure" in document


def test_gaps_in_what_was_measured():
    log = make_log(rows=90)
    log.series["demand"][30:60] = np.nan
    log.series["allocation"][80:, 1] = np.nan
    log.series["stage_us"][5] = np.nan
    check_harmless(report.render(log))


def test_a_meta_that_says_little():
    log = make_log(rows=10)
    log.meta = {}
    check_harmless(report.render(log))


def test_resources_that_cannot_move_are_named_and_left_out():
    log = make_log(rows=10)
    log.meta["movable"] = {"cpu": True, "cache": False, "memory": False, "io": True}
    document = report.render(log)
    assert "cannot move it: cache, memory." in document
    assert document.count("<svg") == 2 * 2 + 3 * 2 + 4


def test_many_vms_the_worst_are_drawn_and_the_page_says_so():
    n, worst = 256, [200, 7, 99]
    log = make_log(n=n, cpus=64, rows=20)
    log.series["demand"][:] = 1.0
    log.series["allocation"][:] = 2.0
    for k, vm in enumerate(worst):
        log.series["demand"][: 20 - 5 * k, vm, 0] = 9.0
    assert vms_of_interest(Run.of(log))[:3] == worst
    document = report.render(log)
    check_harmless(document)
    assert "24 of 256 VMs are drawn" in document
    assert document.count("<svg") == 2 * 4 + 24 * 4 + 4
    assert "more VMs owned CPUs" in document
    assert document.index("<bdi>vm-200</bdi><") > 0


def test_a_full_run_stays_small():
    document = report.render(make_log(n=16, cpus=32, rows=1500))
    assert len(document.encode()) < 4 * 2**20


def test_a_vm_in_the_shared_cache_class_is_not_short_of_cache():
    log = make_log(n=2, rows=10)
    log.series["demand"][:] = 5.0
    log.series["allocation"][:] = 5.0
    log.series["allocation"][:, 0, 1] = 0.0
    log.series["allocation"][:, 1, 1] = 2.0
    short = Run.of(log).short
    assert not short[:, 0].any()
    assert short[:, 1, 1].all()
    demand, allocation = together(Run.of(log), Resource.CACHE)  # nor does the chart of the host say so
    owners = log.series["allocation"][..., 1] > 0
    np.testing.assert_allclose(demand, (log.series["demand"][..., 1] * owners).sum(axis=1))
    assert (demand < log.series["demand"][..., 1].sum(axis=1)).all() and (allocation > 0).all()


def test_the_baseline_is_matched_by_uuid_not_by_row():
    log, base = make_log(n=2, rows=10), make_log(n=2, rows=10)
    base.meta["vm_uuids"] = ["uuid-1", "uuid-0"]
    for x in (log, base):
        x.series["demand"][:] = 5.0
        x.series["allocation"][:] = 9.0
    base.series["allocation"][:, 0] = 1.0  # uuid-1 is short there, uuid-0 never
    document = report.render(log, base)
    first, second = document.index("<bdi>vm-0</bdi>"), document.index("<bdi>vm-1</bdi>")
    assert "under static never" in document[first:second]
    assert "under static 100.0 %" in document[second : second + 200]


def test_broken_logs_are_refused():
    log = make_log(rows=5)
    log.series["allocation"] = log.series["allocation"][:, :1]
    with pytest.raises(InputError, match="run log"):
        report.render(log)
    del log.series["stage_us"]
    with pytest.raises(InputError, match="stage_us"):
        report.render(log)


def test_the_core_map_has_the_owners_colours():
    from matplotlib.image import imread

    colours = np.array([[255, 0, 0, 255], [0, 0, 255, 255]], np.uint8)
    owner = np.array([[0, 1, NOBODY, SEVERAL]] * 4, np.int16)
    ids, zone = np.array([4, 5, 6, 7]), np.array([0, 0, 1, 1])
    with figures.drawing():
        svg = figures.core_map(np.arange(4.0), owner, colours, ids, zone)
    data = re.search(r"base64,([^\"]+)", svg)
    assert data
    pixels = np.rint(imread(io.BytesIO(base64.b64decode(data.group(1)))) * 255).astype(int)
    column = [tuple(p) for p in pixels[:, 0]]
    want = [(255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0), figures.SEVERAL_RGBA]
    assert column in (want, want[::-1])  # matplotlib may store it upside down and turn it in the transform
    assert [re.search(rf">{i}<", svg) is not None for i in ids] == [True] * 4


def test_the_busiest_vms_get_the_colours_that_lie_farthest_apart():
    log = make_log(n=30, cpus=4, rows=10)
    log.series["cpu_owner"][:] = 23
    log.series["cpu_owner"][:, 0] = 5
    got = ["#{:02x}{:02x}{:02x}".format(*c) for c in vm_colours(Run.of(log))[:, :3]]
    assert (got[23], got[5]) == PALETTE[:2]
    assert set(got) == set(PALETTE)


def test_the_palette_can_be_told_apart_by_the_colour_blind():
    # Severity 1.0 matrices of Machado, Oliveira, Fernandes, IEEE TVCG 15(6), 2009, on linear RGB; distance in OKLab.
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    m1 = np.array([[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696],
                   [0.08830246, 0.28171884, 0.62997870]])  # fmt: skip
    m2 = np.array([[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.42859221, 0.45059371],
                   [0.02590404, 0.78277177, -0.80867577]])  # fmt: skip
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for sight in (np.eye(3), np.array(deutan), np.array(protan)):
        lab = np.cbrt(np.clip(linear @ sight.T, 0, 1) @ m1.T) @ m2.T
        distance = np.linalg.norm(lab[:, None] - lab, axis=2) + np.eye(len(lab))
        assert distance.min() > 0.07  # a just noticeable difference is about 0.02
        assert distance[:8, :8].min() > 0.1


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=400), st.integers(1, 50))
def test_thinning_keeps_extremes_ends_and_gaps(values, buckets):
    y = np.array(values)
    rows = figures.thin_rows(y, buckets)
    assert len(rows) <= 2 * buckets + 2
    assert np.all(np.diff(rows) > 0)
    assert rows[0] == 0
    assert rows[-1] == len(y) - 1
    if np.isfinite(y).any():
        assert np.nanmax(y[rows]) == np.nanmax(y)
        assert np.nanmin(y[rows]) == np.nanmin(y)


coordinates = st.floats(-500, 500).map(lambda v: round(v, 6))


@given(st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=60))
def test_short_paths_are_the_same_paths(points):
    path = f"M {points[0][0]} {points[0][1]} " + " ".join(f"L {x} {y}" for x, y in points[1:]) + " z"
    short = figures.shorter_path(path)
    assert short.endswith("z")
    x = y = 0.0
    got = []
    for op, numbers in re.findall(r"([Mlhv])([^Mlhvz]*)", short):
        n = [float(v) for v in numbers.split()]
        if op == "M":
            x, y = n
        elif op == "l":
            x, y = x + n[0], y + n[1]
        elif op == "h":
            x += n[0]
        else:
            y += n[0]
        got.append((x, y))
    assert np.abs(np.array(got) - np.array(points)).max() < 0.051  # rounding does not add up


def test_curves_stay_as_they_are():
    path = "M 0 3 C 0.79 3 1.55 2.68 2.12 2.12 z"
    assert figures.shorter_path(path) == path


def test_without_matplotlib_there_is_one_clear_line(monkeypatch, tmp_path, capsys):
    make_log(rows=5).save(tmp_path / "log.npz")
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'foreshare[report]'" in report.report_available()
    with pytest.raises(HostError, match="needs matplotlib"):
        report.write_report(make_log(rows=5), tmp_path / "out.html")
    assert report.main([str(tmp_path / "log.npz"), str(tmp_path / "out.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


def test_the_entry_point_renders_in_a_process_of_its_own(tmp_path):
    make_log(rows=20).save(tmp_path / "log.npz")
    make_log(rows=20, seed=3).save(tmp_path / "base.npz")
    command = [sys.executable, "-W", "error", "-m", "foreshare.runtime.report", "log.npz", "out.html"]
    done = subprocess.run(
        [*command, "--baseline", "base.npz"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_harmless((tmp_path / "out.html").read_text(encoding="utf-8"))


def test_bad_files_end_with_one_line(tmp_path, capsys):
    good, junk, other = tmp_path / "log.npz", tmp_path / "junk.npz", tmp_path / "other.npz"
    make_log(rows=5).save(good)
    junk.write_bytes(b"not a log")
    np.savez(other, a=np.zeros(3))
    for args in (
        [tmp_path / "none.npz", "o.html"],
        [junk, "o.html"],
        [other, "o.html"],
        [good, tmp_path / "no" / "o.html"],
    ):
        assert report.main([str(a) for a in args]) == 2
        err = capsys.readouterr().err
        assert err.startswith("foreshare: ")
        assert err.count("\n") == 1


def test_a_truncated_log_ends_with_one_line(tmp_path, capsys):
    path = tmp_path / "log.npz"
    make_log(rows=50).save(path)
    data = path.read_bytes()
    for keep in (0, 100, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:keep])
        assert report.main([str(path), str(tmp_path / "o.html")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_rendering_leaves_matplotlib_as_it_was():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    report.render(make_log(rows=3))
    assert dict(mpl.rcParams) == before


def test_the_same_log_gives_the_same_page():
    assert report.render(make_log(rows=20)) == report.render(make_log(rows=20))


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, foreshare.runtime.report, foreshare.runtime.view, foreshare.runtime.tables;"
        "foreshare.runtime.report.report_available();"
        "sys.exit(' '.join({'matplotlib', 'rich', 'pyarrow', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
