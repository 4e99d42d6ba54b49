"""Policies of one's own, from outside: loaded by name into a process, asked, benched, refused; what asking costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_host import answer, call, refused

from foreshare.policies.ask import ABSENCES, FAULTS
from foreshare.policies.errors import ConfigError
from foreshare.policies.registry import POLICIES
from foreshare.runtime.config.file import parse_config
from foreshare.runtime.session import HalChoice, Session


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    from real_host import ENVIRONMENT

    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def run(policy: str, *more: str) -> dict[str, Any]:
    return answer("run", "--json", "--vms", "6", "--ticks", "120", "--policy", policy, *more)


def test_a_plug_in_decides() -> None:
    said = run("misbehaving:good")
    assert said["decided_by"] == {"policy": 120, "fallback": 0} and said["policy_faults"] == {}
    there, here = run("triage", "--policy-in", "process"), run("triage")
    same = ("slo_violation_pct", "writes", "decided_by", "contentions")
    assert {k: there[k] for k in same} == {k: here[k] for k in same}


@pytest.mark.parametrize(("policy", "fault"), [("raises", "raised"), ("says_nan", "wrong"), ("crashes", "crashed")])
def test_one_that_misbehaves_is_told_of(policy: str, fault: str) -> None:
    said = run(f"misbehaving:{policy}")
    assert said["ticks"] == 120 and sum(said["decided_by"].values()) == 120
    assert said["policy_faults"][fault] >= 1 and said["decided_by"]["policy"] >= 20
    assert set(said["policy_faults"]) <= {*FAULTS, *ABSENCES}


def test_what_the_guard_changes_is_counted() -> None:
    said = run("misbehaving:Miser")
    assert said["ticks"] >= said["guarded_ticks"] >= said["raised_ticks"] > 60
    assert run("misbehaving:Miser", "--trust-radius", "1")["raised_ticks"] == 0
    assert run("triage")["guarded_ticks"] == 0


def test_the_events_say_when_and_why() -> None:
    session = Session(choice=HalChoice(vms=4), policy="misbehaving:raises", ticks=60)
    events = session.run().log.events
    fallbacks = [e for e in events if e.kind == "fallback"]
    assert len(fallbacks) >= 3 and "KeyError" in fallbacks[0].text
    assert next(e.text for e in events if e.kind == "benched").startswith("benched (raised)")
    assert any(e.kind == "asked-again" for e in events)


def test_for_people_the_table_counts_them() -> None:
    done = call("run", "--vms", "4", "--ticks", "60", "--policy", "misbehaving:raises", "--baseline", "none")
    assert done.returncode == 0 and "ticks without its answer" in done.stdout and "benched" in done.stdout


@pytest.mark.parametrize(
    ("policy", "says"),
    [("misbehaving:broken", "no weights"), ("no_such_module_here:x", "no_such_module_here"), ("fortune", "no policy")],
)
@pytest.mark.parametrize("where", ["auto", "inline"])
def test_what_cannot_be_loaded_gets_one_line(policy: str, says: str, where: str) -> None:
    assert says in refused(call("run", "--json", "--ticks", "5", "--policy", policy, "--policy-in", where))


def test_a_dry_run_asks_a_plug_in_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answer("run", "--dry-run", "--json", "--vms", "4", "--policy", "misbehaving:good")
    assert said["dry_run"] and said["writes"]


def test_the_configuration_names_them() -> None:
    text = '[policy]\nname = "our.models:champion"\nrun_in = "process"\n'
    config = parse_config(text, policies=frozenset(POLICIES))
    assert (config.policy.name, config.policy.run_in) == ("our.models:champion", "process")
    assert parse_config("", policies=frozenset(POLICIES)).policy.run_in == "auto"
    for wrong in ('run_in = "thread"', 'name = "our models:champion"', 'name = "our.models:"'):
        with pytest.raises(ConfigError):
            parse_config(f"[policy]\n{wrong}\n", policies=frozenset(POLICIES))


def test_bench_policy_answers_in_json_and_for_people() -> None:
    said = answer("bench", "policy", "--json", "--vms", "8", "--ticks", "20")
    assert said["ways"].keys() == {"inline", "timer", "process", "process_alone"}
    assert all(way["p50"] > 0 for way in said["ways"].values())
    assert "under an interval timer" in call("bench", "policy", "--vms", "4", "--ticks", "10").stdout


def test_bench_tick_takes_a_plug_in() -> None:
    said = answer(
        "bench", "tick", "--json", "--vms", "8", "--ticks", "30", "--policy", "foreshare.runtime.bench_policy:network"
    )
    assert said["policy_in"] == "process" and 0 < said["ticks"] <= 80
