"""The command line from outside: every verb's JSON, exit codes, one line for whatever is wrong, signals, pipes."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_host import (
    CPUS,
    ENVIRONMENT,
    FORESHARE,
    Place,
    answer,
    call,
    needs_cgroups,
    place,
    processes,
    read,
    refused,
    snapshot,
    vm_table,
    wait_for,
)

from foreshare.policies.allocators import Request, WaterFilling
from foreshare.policies.decide import DecideOptions
from foreshare.policies.forecast import Ewma
from foreshare.policies.host import Host, IntArray
from foreshare.policies.registry import POLICIES
from foreshare.runtime.session import HalChoice, Session

RUN_KEYS = {
    "ticks", "missed_ticks", "decided_by", "slo_violation_pct", "utilisation_pct", "contentions", "decision_us",
    "restored",
}  # fmt: skip
BENCH_KEYS = {
    "vms", "resources", "ticks", "stages", "decision_us", "tick_us", "floor_us", "floor_ratio_p50", "reaction_us",
    "decided_by_policy_pct", "deferred_writes_pct", "jitter_us",
}  # fmt: skip
STAGES = {"sample", "forecast", "decide", "guard", "place", "apply", "verify"}
P = {"p50", "p99", "p999"}


def check_run(said: dict[str, Any]) -> None:
    assert said.keys() >= RUN_KEYS
    assert said["decided_by"].keys() == {"policy", "fallback"}
    assert said["decision_us"].keys() >= P
    assert said["restored"] is True
    assert sum(said["decided_by"].values()) == said["ticks"] > 0


def check_bench(said: dict[str, Any]) -> None:
    assert said.keys() >= BENCH_KEYS
    assert said["stages"].keys() == STAGES
    assert all(stage.keys() >= P for stage in said["stages"].values())
    assert said["decision_us"].keys() >= P and said["tick_us"].keys() >= P
    assert said["floor_us"].keys() >= {"p50", "p99"} and said["reaction_us"].keys() >= {"p50", "p99"}
    assert said["jitter_us"].keys() >= {"p99", "p999"}
    assert 0 < said["ticks"] <= 60


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, 2) as here:
        a, b = here.cgroups
        here.write(
            vm_table("a", a, "priority = 2", "reservation = { cpu = 0.5 }"),
            vm_table("b", b, "reservation = { cpu = 0.2 }", "cap = { cpu = 1 }"),
        )
        yield here


def linux(*tests: pytest.MarkDecorator) -> Any:
    def mark(function: Any) -> Any:
        for m in (*needs_cgroups, *tests):
            function = m(function)
        return function

    return mark


def test_run_answers_in_json() -> None:
    said = answer("run", "--json", "--vms", "6", "--ticks", "100")
    check_run(said)
    assert said["ticks"] == 100 and said["missed_ticks"] == 0


def test_zero_vms_and_one_are_runs_too() -> None:
    for n in ("0", "1"):
        check_run(answer("run", "--json", "--vms", n, "--ticks", "20"))


def test_doctor_answers_in_json() -> None:
    said = answer("doctor", "--json")
    assert said.keys() >= {"resources", "vms", "clock"}
    assert said["resources"].keys() == {"cpu", "cache", "memory", "io"}
    for resource in said["resources"].values():
        assert resource.keys() >= {"measure", "move", "interface", "unit", "units", "why_not"}
        assert resource["why_not"] or (resource["measure"] and resource["move"])
    people = call("doctor")
    assert people.returncode == 0 and people.stdout and not people.stderr


def test_bench_tick_answers_in_json() -> None:
    said = answer("bench", "tick", "--json", "--hal", "simulated", "--vms", "8", "--ticks", "60")
    check_bench(said)
    assert said["vms"] == 8 and set(said["resources"]) == {"cpu", "cache", "memory", "io"}


def test_bench_simulator_answers_in_json_and_for_people() -> None:
    said = answer("bench", "simulator", "--json", "--hosts", "4", "--vms", "4")
    speeds = said["vm_ticks_per_s"]
    assert set(speeds) == {"step", "step_and_workload", "all", "environment"}
    assert speeds["step"] > speeds["all"] > 0
    assert said["hosts"] == said["vms"] == 4 and said["cost_ratio_256_to_16"] > 0
    people = call("bench", "simulator", "--hosts", "2", "--vms", "4")
    assert people.returncode == 0 and "the step alone" in people.stdout and not people.stderr


@linux()
def test_bench_tick_on_real_cgroups_answers_in_json() -> None:
    said = answer("bench", "tick", "--json", "--hal", "linux", "--vms", "8", "--ticks", "60")
    check_bench(said)
    assert "cpu" in said["resources"] and said["floor_us"]["p50"] > 0 and said["floor_ratio_p50"] > 0
    assert said["failed_writes"] == 0


def test_what_record_wrote_is_played_back(tmp_path: Path) -> None:
    out = tmp_path / "trace"
    said = answer("record", "--hal", "simulated", "--vms", "5", "--seconds", "0.6", "--out", str(out), "--json")
    assert said.keys() >= {"ticks", "dropped"} and said["ticks"] == 60 and said["dropped"] == 0
    played = answer("run", "--hal", "replay", "--trace", str(out), "--json")
    check_run(played)
    assert 55 <= played["ticks"] <= 60
    short = answer("run", "--hal", "replay", "--trace", str(out), "--json", "--ticks", "7")
    assert short["ticks"] == 7
    assert "not an empty folder" in refused(call("record", "--hal", "simulated", "--seconds", "1", "--out", str(out)))


@linux()
def test_a_real_host_is_recorded_and_nothing_is_touched(host: Place) -> None:
    before = snapshot(host.cgroups)
    out = host.folder / "trace"
    with processes(host.cgroups[:1]):
        said = answer(
            "record", "--hal", "linux", "--config", str(host.config), "--seconds", "0.5", "--out", str(out), "--json"
        )
        assert snapshot(host.cgroups) == before
    assert 20 <= said["ticks"] <= 50
    check_run(answer("run", "--hal", "replay", "--trace", str(out), "--json"))


def test_restore_with_nothing_to_do_is_harmless(tmp_path: Path) -> None:
    for _ in range(2):
        said = answer("restore", "--state-dir", str(tmp_path / "state"), "--json")
        assert said["restored"] == 0 and said["failed"] == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "frobnicate"),
        (["run", "--frobnicate"], "--frobnicate"),
        (["run", "--vms", "-1"], "-1"),
        (["run", "--vms", "5000"], "5000"),
        (["run", "--ticks", "x"], "'x'"),
        (["run", "--ticks", "0"], "'0'"),
        (["run", "--seconds", "nan"], "nan"),
        (["run", "--seconds", "inf"], "inf"),
        (["run", "--tick-ms", "1"], "5 to 1000"),
        (["run", "--ticks", "5", "--seconds", "1"], "not allowed with"),
        (["run", "--policy", "magic"], "forecast"),
        (["run", "--scenario", "magic"], "mixed"),
        (["run", "--hal", "magic"], "simulated"),
        (["run", "--hal", "linux"], "--config"),
        (["run", "--hal", "linux", "--config", "/nowhere/host.toml"], "No such file"),
        (["run", "--config", "/nowhere/host.toml"], "No such file"),
        (["run", "--hal", "replay"], "--trace"),
        (["run", "--hal", "replay", "--trace", "/nowhere"], "/nowhere"),
        (["run", "--hal", "replay", "--trace", "/etc"], "no recording"),
        (["run", "--hal", "replay", "--trace", "/dev/null"], "/dev/null"),
        (["run", "--trace", "/tmp", "--ticks", "3"], "--hal replay"),
        (["run", "--hal", "replay", "--trace", "/tmp", "--vms", "3"], "--vms"),
        (["run", "--baseline", "magic", "--ticks", "3"], "magic"),
        (["run", "--ticks", "3", "--report", "/nowhere/run.html"], "/nowhere"),
        (["run", "--ticks", "3", "--report", "/tmp"], "/tmp"),
        (["record", "--seconds", "1"], "--out"),
        (["record", "--out", "/tmp", "--seconds", "x", "--hal", "simulated"], "'x'"),
        (["record", "--out", "/nowhere/x", "--seconds", "1"], "--config"),
        (["record", "--out", "/proc/nowhere", "--seconds", "0.1", "--hal", "simulated"], "/proc/nowhere"),
        (["bench"], "WHAT"),
        (["bench", "simulator", "--hosts", "0"], "'0'"),
        (["tune-baseline"], "POLICY"),
        (["tune-baseline", "static"], "triage"),
        (["tune-baseline", "backlog", "--suite", "magic"], "standard"),
        (["tune-baseline", "backlog", "--steps", "0"], "'0'"),
        (["tune-baseline", "backlog", "--write", "/nowhere/tuned.py"], "/nowhere"),
        (["bench", "tick", "--vms", "0"], "'0'"),
        (["restore", "--state-dir", "/proc/nowhere"], "/proc/nowhere"),
        (["restore", "--config", "/nowhere/host.toml"], "No such file"),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line(args: list[str], says: str) -> None:
    assert says in refused(call(*args))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[host]\nfrobnicate = 1\n", ":2: "),
        ("[host\n", "not valid TOML"),
        ('[[vm]]\nname = "a"\n', "cgroup"),
        ('[[vm]]\nname = "a"\ncgroup = "no-such-cgroup/a"\n', "does not exist"),
        ('[[vm]]\nname = "a"\ncgroup = "../../etc"\n', ".."),
        ("\x00", ""),
    ],
    ids=["unknown key", "no toml", "no cgroup", "missing cgroup", "path out of it", "NUL"],
)
def test_a_wrong_configuration_gets_one_line(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "host.toml"
    config.write_text(text)
    line = refused(call("run", "--hal", "linux", "--config", str(config), "--state-dir", str(tmp_path / "state")))
    assert says in line
    assert not (tmp_path / "state" / "journal.json").exists()


@linux()
def test_more_promised_than_there_is_changes_nothing(host: Place) -> None:
    before = snapshot(host.cgroups)
    host.write(*(vm_table(c, c, f"reservation = {{ cpu = {len(CPUS) * 0.6} }}") for c in host.cgroups))
    assert "cpu" in refused(call(*host.run_args("--ticks", "3")))
    assert snapshot(host.cgroups) == before and not host.journal.exists()


@linux()
def test_without_permission_there_is_one_line(host: Place) -> None:
    before = snapshot(host.cgroups)
    # Loads everything before it becomes nobody, who may have no right to read where interpreter and file live.
    text = host.config.read_text()
    code = (
        "import os, sys\n"
        "from foreshare.runtime.cli import main\n"
        "import foreshare.runtime.cli.run, foreshare.envs.hal.linux.hal, foreshare.runtime.config as c\n"
        f"c._read = lambda path, name: {text!r}\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = host.run_args("--ticks", "3", "--json")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, timeout=30)
    assert "permission" in refused(done).lower()
    assert snapshot(host.cgroups) == before


@linux()
def test_a_dry_run_writes_nothing(host: Place) -> None:
    before = snapshot(host.cgroups)
    people = call(*host.run_args("--dry-run"))
    assert people.returncode == 0 and "write" in people.stdout
    assert host.cgroups[0] in people.stdout
    said = answer(*host.run_args("--dry-run", "--json"))
    assert len(said["writes"]) == len(people.stdout.splitlines())
    assert snapshot(host.cgroups) == before and not host.journal.exists()


@linux()
def test_a_run_on_real_cgroups_answers_in_json(host: Place) -> None:
    before = snapshot(host.cgroups)
    with processes(host.cgroups[:1]):
        said = answer(*host.run_args("--seconds", "0.5", "--json"))
    check_run(said)
    assert said["writes"] > 0 and said["failed_writes"] == 0
    assert snapshot(host.cgroups) == before and not host.journal.exists()


@linux()
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_in_good_order(host: Place, number: signal.Signals) -> None:
    before = snapshot(host.cgroups)
    with processes(host.cgroups[:1]) as running:
        before |= snapshot([], [running[0].pid])
        run = subprocess.Popen(
            [FORESHARE, *host.run_args("--seconds", "60", "--json")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert wait_for(lambda: read(host.cgroups[0], "cpu.cfs_quota_us") != "-1")
        run.send_signal(number)
        run.send_signal(number)  # twice: somebody impatient
        out, err = run.communicate(timeout=20)
        assert run.returncode == 0 and err == ""
        check_run(json.loads(out))
        assert snapshot(host.cgroups, [running[0].pid]) == before
    assert not host.journal.exists()


@linux()
def test_a_reader_that_goes_away_leaves_the_host_in_order(host: Place) -> None:
    before = snapshot(host.cgroups)
    run = subprocess.Popen(
        [FORESHARE, *host.run_args("--seconds", "3")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    err = run.stderr.read()
    run.stderr.close()
    assert run.wait(timeout=20) in (0, 141) and "Traceback" not in err and "Exception ignored" not in err, err
    assert snapshot(host.cgroups) == before and not host.journal.exists()


@pytest.mark.parametrize(
    "args",
    [["doctor"], ["doctor", "--json"], ["run", "--ticks", "2000"], ["run", "--help-config"], ["--help"],
     ["run", "--json", "--ticks", "5"]],
    ids=" ".join,
)  # fmt: skip
def test_a_reader_that_is_gone_is_no_error(args: list[str]) -> None:
    run = subprocess.Popen(
        [FORESHARE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    err = run.stderr.read()
    run.stderr.close()
    assert run.wait(timeout=20) == 0 and err == "", err


def test_a_full_disk_under_the_answer_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [FORESHARE, "run", "--json", "--ticks", "5"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_run_that_is_cut_short_is_compared_over_what_there_was() -> None:
    run = subprocess.Popen(
        [FORESHARE, "run", "--seconds", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert run.stdout is not None
    try:
        run.stdout.readline()
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()  # it would go on for days
    assert run.returncode == 0 and err == ""
    assert "static" in out and "triage" in out


def test_help_answers_at_once() -> None:
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        done = call("--help")
        took.append(time.perf_counter() - begun)
        assert done.returncode == 0 and "run" in done.stdout
    assert statistics.median(took) < 0.3, took


def test_version_is_told() -> None:
    done = call("--version")
    assert done.returncode == 0 and done.stdout.startswith("foreshare ")


def test_a_run_stays_small() -> None:
    code = (
        "import sys\nfrom foreshare.runtime.cli import main\n"
        "code = main(['run', '--json', '--vms', '64', '--seconds', '5'])\n"
        "sys.stderr.write(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert int(done.stderr) < 100 * 1024, f"{done.stderr} KiB"


def test_the_same_seed_gives_the_same_run() -> None:
    def once(seed: int) -> dict[str, Any]:
        said = answer("run", "--json", "--vms", "24", "--seconds", "6", "--seed", str(seed))
        return {k: v for k, v in said.items() if not k.endswith("_us") and k != "stages"}

    first, again, other = once(7), once(7), once(8)
    assert first == again
    assert first["decided_by"]["fallback"] == 0
    assert (other["writes"], other["slo_violation_pct"]) != (first["writes"], first["slo_violation_pct"])


@pytest.mark.parametrize("realtime", [False, True])
def test_only_real_time_makes_a_policy_late(realtime: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(WaterFilling):
        def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
            end = time.perf_counter_ns() + 3 * DecideOptions().policy_budget_ns
            while time.perf_counter_ns() < end:
                pass
            return super().allocate(request, host, tick)

    monkeypatch.setitem(POLICIES, "slow", (Ewma, Slow, "takes its time"))
    choice = HalChoice(vms=4, realtime=realtime)
    summary = Session(choice=choice, policy="slow", ticks=10).run().log.summary
    assert (summary["decided_by"]["fallback"] > 0) == realtime
    assert (summary["policy_faults"].get("late", 0) > 0) == realtime
    assert summary["decided_by"]["policy"] == (summary["decided_late"] if realtime else 10)
