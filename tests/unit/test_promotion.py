"""From a network to a champion: parity, the gate's every reason, and a registry that nothing leaves half changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import STAND_IN, bundle_files, make_keys, write
from onnx import numpy_helper

from foreshare.envs.simulator.suites import Suite, load_suite
from foreshare.policies.learned import Network, SchemaError, Widths
from foreshare.policies.learned import weights as weights_module
from foreshare.policies.learned.bundle import NPZ, ONNX, Bundle, BundleError, check_bundle
from foreshare.runtime.cli import main
from foreshare.runtime.keys import Keys
from foreshare.training.delivery import promote as promote_module
from foreshare.training.delivery.export import Facts, contents_of, forms, read_run
from foreshare.training.delivery.gate import Contest, refusals
from foreshare.training.delivery.onnx_graph import OPSET, onnx_of
from foreshare.training.delivery.parity import SIZES, TOLERANCE, ParityError, cases, check_parity
from foreshare.training.delivery.promote import PromoteOptions, closure_paying, listed, promote, rollback
from foreshare.training.delivery.registry import Registry, RegistryError
from foreshare.training.delivery.timing import too_slow
from foreshare.training.evaluate_run import PLAIN, Run
from foreshare.training.evaluate_summary import Results

pytestmark = pytest.mark.timeout(300)  # MLflow waits for the disk with every step, and a busy disk is slow
WIDTHS = [Widths(), Widths(0, 0, 0), Widths(0, 8, 8), Widths(8, 0, 8), Widths(8, 8, 0), Widths(0, 0, 8)]

# -- parity


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_torch_onnx_and_numpy_answer_alike(widths: Widths) -> None:
    mean = np.linspace(-0.5, 1.5, len(Network.random(0).arrays["vm_mean"]))
    net = Network.random(1, widths).with_normalisation(vm_mean=mean, vm_scale=np.full(len(mean), 1.7))
    on = cases(net, SIZES if widths == Widths() else (1, 7, 64))
    model = onnx_of(net)
    worst = check_parity(net, forms(net, model), on)
    assert set(worst) == {"torch", "onnxruntime"}
    assert max(worst.values()) <= TOLERANCE
    assert model == onnx_of(net)
    read = onnx.load_from_string(model)
    assert read.opset_import[0].version == OPSET
    assert {p.key: p.value for p in read.metadata_props} == {"foreshare.schema": weights_module.schema_hash()}
    assert [d.dim_param for d in read.graph.input[0].type.tensor_type.shape.dim][:2] == ["B", "N"]


def test_a_form_that_differs_stops_the_export(tmp_path: Path) -> None:
    keys, net = make_keys(tmp_path / "keys"), Network.random(1, Widths(4, 4, 4))
    on = cases(net, (1, 7))
    model = onnx.load_from_string(onnx_of(net))
    bias = next(t for t in model.graph.initializer if t.name == "out_b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), "out_b"))
    with pytest.raises(ParityError, match="onnxruntime and numpy differ") as refusal:
        contents_of(net, Facts(), keys.sign, model=model.SerializeToString(), on=on)
    assert 1e-5 < refusal.value.difference < 1e-2
    nothing = {"torch": lambda vms, mask, host: np.full((*vms.shape[:-1], 5), np.nan, np.float32)}
    with pytest.raises(ParityError):
        check_parity(net, nothing, on)


def test_export_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(tmp_path / "keys"))
    run, out = tmp_path / "run", tmp_path / "bundle"
    run.mkdir()
    assert main(["export", str(run), "--out", str(out)]) == 2  # no key yet
    make_keys(tmp_path / "keys")
    for wrong in (str(run), str(tmp_path / "nowhere.npz")):
        assert main(["export", wrong, "--out", str(out)]) == 2
    assert all(len(line) < 300 for line in capsys.readouterr().err.splitlines())
    Network.random(5, Widths(4, 4, 4), gain=0.1).save(run / NPZ)
    (run / "result.json").write_text(json.dumps({"command": "foreshare train", "seed": 7}))
    assert read_run(run)[1]["seed"] == 7
    assert main(["export", str(run), "--out", str(run / NPZ)]) == 2
    assert main(["export", str(run), "--out", str(out), "--evaluation", str(run / "result.json")]) == 2
    capsys.readouterr()
    assert not out.exists()
    assert main(["export", str(run), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["training"]["seed"] == 7
    assert manifest["parity"]["worst"].keys() == {"torch", "onnxruntime"}
    assert {"guard", "delay_model", "env", "base"} <= manifest["hashes"].keys()
    assert {"standard", "smoke"} <= manifest["suites"].keys()
    assert len(told["sha256"]) == 64


# -- the gate

SUITE = load_suite("smoke")
CONTEST = Contest(candidate="candidate", champion="champion", base="triage")
LATE = {"mild": 0.3, "tight": 3.0, "over": 17.0}


def figures(v: float, **other: float) -> dict[str, object]:
    return {
        "slo_violation_pct": v, "late_vms_pct": 1.0, "starved_vms_pct": 2.0, "p99_alone_median": 1.0,
        "p99_alone_worst_decile": 1.0, "moves_per_tick": 1.0, "fairness": 1.0, "utilisation_pct": 50.0,
        "reservations_broken": 0, "fallbacks": 0, "violation_by_priority": {"0": v}, "decision_us": None, **other,
    }  # fmt: skip


Told = Callable[[str, str, int], dict[str, object]]


def results(told: Told, contest: Contest = CONTEST, seeds: int = 5) -> Results:
    """What an evaluation would have found; ``told`` answers for the candidate: (scenario, load, seed)."""
    names = tuple(dict.fromkeys([contest.candidate, contest.rival, contest.base]))
    out = Results(SUITE, names, seeds)
    for name in names:
        for scenario in SUITE.scenarios:
            for load, _ in SUITE.loads:
                for seed in range(seeds):
                    at = (scenario.name, load, seed)
                    found = told(*at) if name == contest.candidate else figures(LATE[load] * (1 + 0.3 * seed))
                    run = Run(kind=PLAIN, scenario=scenario, policy=name, seed=seed, ticks=1, warm_ticks=0)
                    out.add(at, run, found)
    return out


def better(scenario: str, load: str, seed: int) -> dict[str, object]:
    return figures(LATE[load] * (1 + 0.3 * seed) * (0.8 if load == "over" else 1.0))


def but(**other: float) -> Told:
    return lambda scenario, load, seed: better(scenario, load, seed) | other


def shifted(by: Callable[[str, str, int], float], **other: float) -> Told:
    def told(scenario: str, load: str, seed: int) -> dict[str, object]:
        return figures(LATE[load] * (1 + 0.3 * seed) + by(scenario, load, seed), **other)

    return told


REASONS: dict[str, tuple[Told, str]] = {
    "no better": (shifted(lambda s, x, k: 0.0), "not shown to be below the champion's"),
    "better by chance": (
        shifted(lambda s, x, k: (-3.0, 1.0, 2.0, -2.0, 1.5)[k] * (x != "mild")), "not shown to be below"
    ),
    "better at mild only": (shifted(lambda s, x, k: -0.2 * (x == "mild")), "not shown to be below"),
    "worse at mild": (shifted(lambda s, x, k: 0.2 if x == "mild" else -1.0), "mild: V is +0.20 points"),
    "worse at tight": (shifted(lambda s, x, k: 0.11 if x == "tight" else -1.0 * (x == "over")), "tight: V is"),
    "worse in a scenario": (
        shifted(lambda s, x, k: (1.2 if "8x4" in s else -9.0) * (x != "mild") * 1.3), "scenario smoke-8x4: V is +1.04"
    ),
    "starves": (but(starved_vms_pct=2.1), "2.100 % of VMs are starved, 2.000 % with the champion"),
    "breaks reservations": (but(reservations_broken=1), "reservations are broken, 0 with the champion"),
    "leaves ticks": (but(fallbacks=2), "ticks to the priority sort"),
    "is no number": (but(slo_violation_pct=float("nan")), "not shown to be below"),
}  # fmt: skip


@pytest.mark.parametrize(("told", "reason"), REASONS.values(), ids=REASONS)
def test_every_reason_is_said(told: Told, reason: str) -> None:
    said = refusals(results(told), CONTEST)
    assert any(reason in line for line in said), said
    assert all("\n" not in line for line in said)


def test_who_is_better_and_worse_in_nothing_passes() -> None:
    assert refusals(results(better), CONTEST) == []
    first = Contest(candidate="candidate", champion=None, base="triage")
    assert refusals(results(better, first), first) == []
    assert "tuned triage" in refusals(results(shifted(lambda s, x, k: 0.0), first), first)[0]
    assert too_slow({"p50": 100.0, "p99": 1e9}) == []
    assert "at most 600" in too_slow({"p50": 601.0, "p99": 1.0})[0]


def test_closure_is_the_lesser_one() -> None:
    told = {"evaluation": {"policy": {"tight": {"closure_paying": 61.0}, "over": {"closure_paying": 55.5}}}}
    assert closure_paying(told) == 55.5
    for none in ({}, {"evaluation": {}}, {"evaluation": {"policy": {"tight": {"closure_paying": 3.0}}}}):
        assert closure_paying(none) is None


# -- the registry


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry: making one takes MLflow seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    registry = Registry(f"sqlite:///{path}")
    with registry._asking(make=True) as client:
        assert client is not None
        client.search_registered_models()
    return path


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("vouching") / "keys")


@pytest.fixture
def mechanics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity and timing hold: they have tests of their own."""
    monkeypatch.setattr(promote_module, "_mechanics", lambda bundle: ({}, []))


def candidate(keys: Keys, seed: int) -> dict[str, bytes]:
    return bundle_files(Network.random(seed, Widths(2, 2, 2)), keys)


def evaluated(told: Told) -> Callable[[Suite, list[str]], Results]:
    def collect(suite: Suite, policies: list[str]) -> Results:
        champion = policies[1] if len(policies) == 3 else None
        return results(told, Contest(candidate=policies[0], champion=champion, base=policies[-1]))

    return collect


STANDARD = PromoteOptions()


@pytest.mark.usefixtures("mechanics")
def test_from_nobody_to_champion_and_back(uri: str, keys: Keys, tmp_path: Path) -> None:
    registry = Registry(uri)
    assert listed(registry) | {"model": "", "registry": ""} == {
        "champion": None, "previous": None, "versions": [], "model": "", "registry": ""
    }  # fmt: skip
    one, two = candidate(keys, 1), candidate(keys, 2)
    a, b = write(one, tmp_path / "a"), write(two, tmp_path / "b")
    first = promote(str(a), registry, keys.verify, STANDARD, evaluated=evaluated(better))
    assert (first["promoted"], first["reasons"]) == (True, [])
    refused = promote(str(b), registry, keys.verify, STANDARD, evaluated=evaluated(but(fallbacks=1)))
    assert not refused["promoted"]
    assert refused["evidence"]["over"]["high"] < 0
    assert len(registry.versions()) == 1, "who is refused leaves no trace"
    assert promote(str(a), registry, keys.verify, STANDARD)["reasons"] == ["it is the champion already"]
    assert promote(str(b), registry, keys.verify, STANDARD, evaluated=evaluated(better))["promoted"]
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert registry.fetch(registry.version("champion"), keys.verify).contents == two
    assert registry.fetch(registry.version("1"), keys.verify).contents == one
    assert rollback(registry) == {"champion": "1", "previous": "2"}
    assert registry.aliases() == {"champion": "1", "previous": "2"}
    # a version that is there already is not registered again
    assert promote("2", registry, keys.verify, STANDARD, evaluated=evaluated(better))["promoted"]
    assert [v["version"] for v in listed(registry)["versions"]] == ["1", "2"]
    stranger = make_keys(tmp_path / "stranger")
    with pytest.raises(BundleError, match="nobody trusts"):
        registry.fetch(registry.version("champion"), stranger.verify)
    with pytest.raises(RegistryError, match="has no 'nobody'"):
        registry.version("nobody")


@pytest.mark.usefixtures("mechanics")
def test_smoke_promotes_nothing_that_a_host_looks_at(uri: str, keys: Keys, tmp_path: Path) -> None:
    folder, real = str(write(candidate(keys, 1), tmp_path / "a")), Registry(uri)
    for options in (PromoteOptions(suite="smoke"), PromoteOptions(seeds=4), PromoteOptions(suite="train", seeds=9)):
        found = promote(folder, real, keys.verify, options, evaluated=evaluated(better))
        assert not found["promoted"]
        assert "do not promote" in found["reasons"][0]
    rehearsal = Registry(uri, rehearsal=True)
    found = promote(folder, rehearsal, keys.verify, PromoteOptions(suite="smoke", seeds=1, rehearsal=True),
                    evaluated=evaluated(but(fallbacks=1)))  # fmt: skip
    assert found["promoted"]
    assert "priority sort" in found["reasons"][0]
    assert rehearsal.aliases() == {"champion": "1"}
    assert real.aliases() == {}
    assert real.versions() == []


def test_a_rehearsal_passes_over_no_parity(uri: str, keys: Keys, tmp_path: Path) -> None:
    net = Network.random(1, Widths(2, 2, 2))
    options = PromoteOptions(suite="smoke", seeds=1, rehearsal=True)
    for i, model in enumerate((onnx_of(Network.random(2, Widths(2, 2, 2))), STAND_IN)):
        folder = write(bundle_files(net, keys, model), tmp_path / str(i))
        found = promote(str(folder), Registry(uri, rehearsal=True), keys.verify, options)
        assert not found["promoted"]
        assert "differ" in found["reasons"][0] or "ONNX" in found["reasons"][0]


@pytest.mark.usefixtures("mechanics")
def test_a_champion_that_changed_meanwhile_stays(uri: str, keys: Keys, tmp_path: Path) -> None:
    registry = Registry(uri)
    folders = [str(write(candidate(keys, i), tmp_path / str(i))) for i in range(2)]

    def somebody_else(suite: Suite, policies: list[str]) -> Results:
        promote(folders[1], registry, keys.verify, STANDARD, evaluated=evaluated(better))
        return evaluated(better)(suite, policies)

    with pytest.raises(RegistryError, match="changed while"):
        promote(folders[0], registry, keys.verify, STANDARD, evaluated=somebody_else)
    assert registry.fetch(registry.version("champion"), keys.verify).contents == candidate(keys, 1)


class KilledRegistry(Registry):
    """Is killed at one of the steps of a promotion."""

    def __init__(self, uri: str, at: str) -> None:
        super().__init__(uri)
        self._at = at

    def _step(self, name: str) -> None:
        if name == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def register(self, bundle: Bundle, notes: object, tags: object) -> object:  # type: ignore[override]
        self._step("before register")
        found = super().register(bundle, notes, tags)  # type: ignore[arg-type]
        self._step("after register")
        return found

    def _experiment(self, client: object) -> str:
        self._step("before the upload")
        return super()._experiment(client)  # type: ignore[arg-type]

    def point(self, alias: str, version: str) -> None:
        super().point(alias, version)
        self._step(f"after {alias}")


STEPS = ["before register", "before the upload", "after register", "after previous", "after champion"]


@pytest.mark.usefixtures("mechanics")
def test_killed_at_any_step_a_promotion_leaves_a_whole_champion(uri: str, keys: Keys, tmp_path: Path) -> None:
    one, two = candidate(keys, 1), candidate(keys, 2)
    a, b = str(write(one, tmp_path / "a")), str(write(two, tmp_path / "b"))
    promote(a, Registry(uri), keys.verify, STANDARD, evaluated=evaluated(better))
    database = Path(uri.removeprefix("sqlite:///"))
    for i, step in enumerate(STEPS):
        copy = database.with_name(f"{i}.db")  # whose connections no fork shares
        shutil.copy(database, copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: the child uses none of theirs
            pid = os.fork()
        if not pid:
            try:
                promote(
                    b, KilledRegistry(f"sqlite:///{copy}", step), keys.verify, STANDARD, evaluated=evaluated(better)
                )
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, step
        registry = Registry(f"sqlite:///{copy}")
        champion = registry.fetch(registry.version("champion"), keys.verify)
        assert champion.contents == (two if step == "after champion" else one), step
    # Whoever was killed between the two names goes through when he is asked again.
    copy = database.with_name(f"{STEPS.index('after previous')}.db")
    registry = Registry(f"sqlite:///{copy}")
    assert promote(b, registry, keys.verify, STANDARD, evaluated=evaluated(better))["promoted"]
    assert registry.fetch(registry.version("champion"), keys.verify).contents == two
    assert registry.fetch(registry.version("previous"), keys.verify).contents == one


def test_what_the_registry_holds_is_not_believed(uri: str, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(uri)
    files = candidate(keys, 1)
    version = registry.register(check_bundle(files, keys.verify, "x"), {"gate": {"a": 1}}, {"suite": "standard"})
    stored = Path(version.source.removeprefix("file://"))
    (stored / NPZ).write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match="not the file that its manifest describes"):
        registry.fetch(version, keys.verify)
    (stored / NPZ).write_bytes(b"x" * (1 << 23))
    with pytest.raises(BundleError, match="more than"):
        registry.fetch(version, keys.verify)
    (stored / NPZ).unlink()
    with pytest.raises(BundleError, match="no bundle"):
        registry.fetch(version, keys.verify)
    (stored / NPZ).write_bytes(files[NPZ])
    assert registry.fetch(version, keys.verify).contents[ONNX] == STAND_IN
    monkeypatch.setattr("foreshare.policies.learned.bundle.schema_hash", lambda: "f" * 16)
    with pytest.raises(SchemaError):
        registry.fetch(version, keys.verify)


@pytest.mark.parametrize("down", ["http://127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/x", "sqlite:///{}/no/such.db",
                                  "sqlite:///{}/text.db", "./mlruns", "ftp://x/y"])  # fmt: skip
def test_a_registry_that_is_down_is_one_line(
    down: str, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(keys.folder))
    (tmp_path / "text.db").write_text("no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", down.format(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = write(candidate(keys, 1), tmp_path / "b")
    began = time.monotonic()
    verbs: list[list[str]] = [["pull", "--to", str(tmp_path / "host")], ["rollback"], ["promote", str(folder)]]
    for argv in verbs:
        if argv[0] == "promote" and "no/such" in down:
            continue  # is found out when it would be made, after the evaluation
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1, captured.err
    assert time.monotonic() - began < 60
    assert not (tmp_path / "host").exists()
    assert not (tmp_path / "mlruns").exists()


def test_pull_and_models_on_the_command_line(
    uri: str, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(keys.folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    registry, at = Registry(uri), tmp_path / "host"
    assert main(["pull", "--to", str(at)]) == 2  # no champion yet
    files = candidate(keys, 1)
    registry.register(check_bundle(files, keys.verify, "x"), {}, {"closure_paying": "51.5"})
    registry.point("champion", "1")
    capsys.readouterr()
    assert main(["pull", "--to", str(at), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["verified"]) == ("1", True)
    assert {p.name: p.read_bytes() for p in at.iterdir()} == files
    assert main(["models", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["champion"] == "1"
    assert shown["versions"][0]["closure_paying"] == 51.5
    assert {"version", "created", "schema"} <= shown["versions"][0].keys()
    assert main(["models"]) == 0
    assert "champion" in capsys.readouterr().out
    stored = Path(registry.version("1").source.removeprefix("file://"))
    (stored / NPZ).write_bytes(b"x")
    assert main(["pull", "--to", str(at)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {p.name: p.read_bytes() for p in at.iterdir()} == files
    for argv in (["rollback"], ["pull", "--to", str(tmp_path)], ["pull", "--alias", "7", "--to", str(at)],
                 ["promote", str(tmp_path / "nowhere")], ["promote", "9"]):  # fmt: skip
        assert main(argv) == 2, argv
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["promote", str(at), "--suite", "smoke", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["promoted"] is False
