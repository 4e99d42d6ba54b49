"""The learned policy: the network's arithmetic, its file, and that what an agent trains in is what a host runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal import Host
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import Scenario, load_scenario
from foreshare.envs.simulator.scenario_draw import draw
from foreshare.envs.vector import PartitionVectorEnv, episode_seed
from foreshare.envs.world import SimulatedWorld
from foreshare.policies import kernel
from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.decide import UNHURRIED, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.features import F, G, schema_hash
from foreshare.policies.learned import Network, SchemaError, Widths
from foreshare.policies.learned.policy import Learned, learned_mind
from foreshare.policies.learned.weights import NAMES
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, Tick

WIDTHS = [
    Widths(), Widths(0, 0, 0), Widths(0, 8, 8), Widths(8, 0, 8), Widths(8, 8, 0), Widths(0, 0, 8), Widths(64, 48, 16)
]  # fmt: skip


def seen(seed: int, n: int, *batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vms = rng.standard_normal((*batch, n, F)).astype(np.float32)
    mask = (rng.random((*batch, n)) < 0.7).astype(np.float32)
    return vms, mask, rng.standard_normal((*batch, G)).astype(np.float32)


def plainly(net: Network, vms: np.ndarray, mask: np.ndarray, host: np.ndarray) -> np.ndarray:
    """Compute one host's actions as the docstring says, VM by VM, in float64."""
    a = {k: v.astype(np.float64) for k, v in net.arrays.items()}
    x = (vms - a["vm_mean"]) * a["vm_scale"]
    g = (host - a["host_mean"]) * a["host_scale"]
    there = [i for i in range(len(vms)) if mask[i]]
    h = {i: np.tanh(x[i] @ a["enc_w"] + a["enc_b"]) for i in there}
    codes = np.array(list(h.values())) if h else np.zeros((1, net.widths.encoder))
    c = np.tanh(np.concatenate([codes.mean(axis=0), codes.max(axis=0), g]) @ a["ctx_w"] + a["ctx_b"])
    out = np.zeros((len(vms), ACTIONS))
    for i in there:
        z = np.tanh(np.concatenate([h[i], c]) @ a["head_w"] + a["head_b"])
        out[i] = np.tanh(z @ a["out_w"] + a["out_b"] + x[i] @ a["lin_w"])
    return out


@pytest.fixture(params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(kernel, "compiled", None)
    elif kernel.compiled is None:
        pytest.skip("nothing was compiled here")
    return str(request.param)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 64])
def test_the_network_is_the_formula(widths: Widths, n: int, form: str) -> None:
    net = Network.random(3, widths).with_normalisation(
        vm_mean=np.linspace(-1, 1, F), vm_scale=np.linspace(0.2, 2, F), host_mean=np.full(G, 0.3)
    )
    vms, mask, host = seen(n, n, 3)
    mask[0] = 0
    action = net.forward(vms, mask, host)
    assert action.shape == (3, n, ACTIONS)
    assert action.dtype == np.float32
    for k in range(3):
        assert np.abs(action[k] - plainly(net, vms[k], mask[k], host[k])).max(initial=0.0) < 2e-6
        assert (action[k] == net.forward(vms[k], mask[k], host[k])).all(), "a host knows who stands beside it"


@pytest.mark.parametrize("widths", [Widths(), Widths(0, 0, 0)], ids=str)
def test_who_is_not_there_changes_nothing(widths: Widths, form: str) -> None:
    net = Network.random(1, widths)
    vms, mask, host = seen(5, 16, 2)
    padded = np.concatenate([vms, np.full((2, 5, F), np.nan, np.float32)], axis=1)
    before = net.forward(vms, mask, host)
    other = np.where(mask[..., None] > 0, vms, 77.0).astype(np.float32)
    assert (net.forward(other, mask, host) == before).all()
    after = net.forward(padded, np.concatenate([mask, np.zeros((2, 5))], axis=1), host)
    assert np.abs(after[:, :16] - before).max() < (1e-6 if form == "numpy" else 1e-30)
    assert not after[:, 16:].any()
    assert not before[mask == 0].any()


def test_the_compiled_form_takes_only_what_fits() -> None:
    if kernel.compiled is None:
        pytest.skip("nothing was compiled here")
    net = Network.random(0)
    vms, mask, host = seen(1, 4)
    out = np.zeros((4, ACTIONS), np.float32)
    there, sizes, weights = mask > 0, net._sizes, net._packed
    for wrong in (
        (sizes, 1, 5, weights, vms, there, host, out),
        (sizes, 2, 4, weights, vms, there, host, out),
        (sizes * 2, 1, 4, weights, vms, there, host, out),
        (-sizes, 1, 4, weights, vms, there, host, out),
        (sizes, -1, 4, weights, vms, there, host, out),
        (sizes, 1, 4, weights[:-1], vms, there, host, out),
        (sizes, 1, 4, weights, vms.astype(np.float64), there, host, out),
        (sizes, 1 << 40, 4, weights, vms, there, host, out),
    ):
        with pytest.raises(ValueError, match=r"array|large"):
            kernel.compiled.network(*wrong)


def test_order_does_not_matter() -> None:
    net, order = Network.random(2), np.random.default_rng(0).permutation(16)
    vms, mask, host = seen(8, 16)
    moved = net.forward(vms[order], mask[order], host)
    assert np.abs(moved - net.forward(vms, mask, host)[order]).max() < 1e-6


def test_what_it_hands_out_is_the_callers() -> None:
    net = Network.random(2)
    vms, mask, host = seen(8, 4)
    first = net.forward(vms, mask, host)
    kept = first.copy()
    net.forward(vms * 2, mask, host)
    assert (first == kept).all()
    with pytest.raises(ValueError, match="read-only"):
        net.arrays["out_w"][:] = 0.0


def test_the_file_brings_back_the_network(tmp_path: Path) -> None:
    for widths in WIDTHS:
        net = Network.random(4, widths)
        net.save(tmp_path / "policy.npz")
        back = Network.load(tmp_path / "policy.npz")
        assert back.widths == widths
        assert all((back.arrays[k] == net.arrays[k]).all() for k in NAMES)
        assert back.packed() == net.packed()
    assert not Network.random(1, gain=0.0).forward(*seen(1, 5)).any()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {n: file.read(n) for n in file.namelist()}


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, raw in parts.items():
            file.writestr(name, raw)
    return out.getvalue()


def npy(array: object, **header: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)  # type: ignore[arg-type]  # whatever numpy makes an array of
    return out.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


class OpenedError(Exception):
    """The attack worked."""


def explode() -> None:
    raise OpenedError


class Mine:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return explode, ()


ATTACKS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "nothing": lambda parts: b"",
    "no zip": lambda parts: b"\x00" * 4000,
    "a pickle": lambda parts: pickle.dumps({"vm_mean": 1}),
    "pickle inside": lambda parts: zipped(parts | {"enc_w.npy": npy(np.array([Mine()], object))}),
    "pickle only": lambda parts: zipped(parts | {"enc_w.npy": pickle.dumps(Mine())}),
    "huge shape": lambda parts: zipped(parts | {"enc_w.npy": claiming((1 << 40, 1 << 40)) + b"\0" * 64}),
    "large shape": lambda parts: zipped(parts | {"enc_w.npy": claiming((1 << 33,)) + b"\0" * 64}),
    "negative shape": lambda parts: zipped(parts | {"enc_w.npy": claiming((-1, -4)) + b"\0" * 16}),
    "more than it claims": lambda parts: zipped(parts | {"enc_w.npy": parts["enc_w.npy"] + b"\0" * 4}),
    "a bomb": lambda parts: zipped(parts | {"enc_w.npy": b"\0" * (1 << 24)}, zipfile.ZIP_DEFLATED),
    "too long": lambda parts: zipped(parts | {"enc_w.npy": b"\0" * (1 << 23)}),
    "one missing": lambda parts: zipped({k: v for k, v in parts.items() if k != "out_b.npy"}),
    "one more": lambda parts: zipped(parts | {"../../etc/passwd": b"x"}),
    "no schema": lambda parts: zipped({k: v for k, v in parts.items() if k != "schema.npy"}),
    "float64": lambda parts: zipped(parts | {"out_b.npy": npy(np.zeros(ACTIONS))}),
    "nan": lambda parts: zipped(parts | {"out_b.npy": npy(np.full(ACTIONS, np.nan, np.float32))}),
    "another width": lambda parts: zipped(parts | {"enc_b.npy": npy(np.zeros(3, np.float32))}),
    "a scalar": lambda parts: zipped(parts | {"enc_b.npy": npy(np.float32(3.0))}),
    "endless header": lambda parts: zipped(parts | {"enc_b.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_file_does_more_than_be_refused(attack: Callable[[dict[str, bytes]], bytes]) -> None:
    data = attack(members(Network.random(0).packed()))
    with pytest.raises(InputError) as refusal:
        Network.load(data)
    assert "\n" not in str(refusal.value)


def test_a_file_that_was_cut_or_changed_anywhere_is_refused_or_harmless() -> None:
    whole = Network.random(0, Widths(4, 4, 4)).packed()
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(whole), 60):
        with pytest.raises(InputError):
            Network.load(whole[:at])
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        try:  # what is no number of a weight may be changed without harm: names of makers, flags
            Network.load(bytes(damaged))
        except InputError:
            continue


def test_other_features_are_told_apart() -> None:
    parts = members(Network.random(0).packed())
    parts["schema.npy"] = npy(np.frombuffer(b"0123456789abcdef", np.uint8))
    with pytest.raises(SchemaError, match=schema_hash()) as refusal:
        Network.load(zipped(parts))
    assert refusal.value.found == "0123456789abcdef"


# -- as a policy


def mind_of(net: Network) -> Callable[[Host], Mind]:
    return lambda host: learned_mind(net, make_mind("triage", host, UNHURRIED), UNHURRIED)


class Notes:
    """Keeps what a control loop decides."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def on_tick(self, tick: Tick) -> None:
        self.seen.append(tick.decision.placement.units.copy())

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Nothing to note."""


WORN = draw(31, cpus=24, vms=14, zones=2, telemetry="all-faults", load=0.8, name="worn")


@pytest.mark.parametrize("scenario", [load_scenario("mixed"), load_scenario("churn"), WORN], ids=lambda s: s.name)
def test_an_agent_and_the_policy_decide_alike_in_every_tick(scenario: Scenario) -> None:
    ticks, net, seed = 250, Network.random(7, gain=0.6), 5
    padding = 0 if kernel.compiled is None else 5  # numpy's sums depend on how many rows there are
    env = PartitionVectorEnv(num_envs=2, scenarios=(scenario,), ticks=ticks, max_vms=len(scenario.vm) + padding)
    shown, _ = env.reset(seed=seed)
    inner = episode_seed(seed, 0)
    world = SimulatedWorld(scenario, mind_of(net), hosts=2, seed=inner)
    hal = SimulatedHal(scenario, seed=inner)
    hal.claim(lambda originals: None)
    notes = Notes()
    ControlLoop(hal, mind_of(net)(Host(hal.topology, hal.vms)), observers=[notes]).run(ticks)
    corrected = 0
    for t in range(ticks):
        action = net.forward(shown["vms"], shown["mask"], shown["host"])
        shown, *_ = env.step(action)
        decision = env.agents[0].decision
        assert decision is not None
        world.sense()
        theirs = world.act().placement.units
        assert (decision.placement.units == theirs).all(), f"tick {t}"
        assert (notes.seen[t] == theirs[0]).all(), f"tick {t}"
        corrected += int(np.abs(action).max() > 0.1)
    assert corrected > ticks // 2
    env.close()


def test_a_network_that_answers_zero_is_triage() -> None:
    plain = SimulatedWorld(WORN, lambda host: make_mind("triage", host, UNHURRIED), hosts=2, seed=1)
    other = SimulatedWorld(WORN, mind_of(Network.random(0, gain=0.0)), hosts=2, seed=1)
    for _ in range(120):
        plain.sense()
        other.sense()
        assert (plain.act().placement.units == other.act().placement.units).all()


def test_without_a_mind_it_says_so() -> None:
    host = SimulatedHal(load_scenario("mixed"), seed=0)
    mind = make_mind("triage", Host(host.topology, host.vms), UNHURRIED)
    with pytest.raises(InputError, match="no mind"):
        Learned(mind.policy, Network.random(0)).allocate(mind.request, mind.host, 0)


def test_rehearsing_leaves_no_trace() -> None:
    scenario, net = load_scenario("mixed"), Network.random(7)
    one, two = (SimulatedWorld(scenario, mind_of(net), hosts=1, seed=4) for _ in range(2))
    one.mind.warm_up()
    for _ in range(40):
        one.sense()
        two.sense()
        assert (one.act().placement.units == two.act().placement.units).all()
