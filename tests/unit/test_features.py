"""The schema of what a policy sees: declared once, in bounds for any host, independent of the order of the VMs."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies import kernel
from foreshare.policies.decide import UNHURRIED, conclude_tick, forecast_tick
from foreshare.policies.features import (
    HOST_FEATURES,
    LATELY_TICKS,
    MOST_FALL,
    VM_FEATURES,
    Encoder,
    F,
    G,
    bounds,
    remembered_of,
    schema_hash,
)  # fmt: skip
from foreshare.policies.host import CACHE, Host
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind


def reading(host: Host, rng: np.random.Generator, *, holes: bool) -> Reading:
    out = Reading.empty(len(host))
    out.dt_ns = 10_000_000
    out.usage[:] = rng.uniform(0, 60, (len(host), 4))
    out.demand_low[:] = out.usage * rng.uniform(1, 3, (len(host), 4))
    out.limit[:] = np.inf
    out.wait_ns[:] = rng.uniform(0, 5e7, len(host))
    out.quality[:] = 0
    if holes:
        missing = rng.random((len(host), 4)) < 0.3
        out.usage[missing] = out.demand_low[missing] = np.nan
        out.quality[missing] = 1
    return out


def test_names_are_unique_and_every_feature_says_what_it_is() -> None:
    for features in (VM_FEATURES, HOST_FEATURES):
        assert len({f.name for f in features}) == len(features)
        assert all(f.unit and f.source and f.low <= f.default <= f.high for f in features)


def test_the_hash_is_of_the_schema() -> None:
    assert schema_hash() == schema_hash()
    assert len(schema_hash()) == 16


@settings(max_examples=40)
@given(host=hosts(), seed=st.integers(0, 2**32), holes=st.booleans())
def test_in_bounds_whatever_the_host(host: Host, seed: int, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    mind = make_mind("triage", host)
    encoder = Encoder(mind)
    (vm_low, vm_high), (host_low, host_high) = bounds()
    for _ in range(3):
        forecast_tick(mind, reading(host, rng, holes=holes))
        vms, whole = encoder.encode()
        assert vms.shape == (len(host), F)
        assert whole.shape == (G,)
        assert vms.dtype == whole.dtype == np.float32
        assert ((vms >= vm_low) & (vms <= vm_high)).all()
        assert ((whole >= host_low) & (whole <= host_high)).all()
        conclude_tick(mind)


@settings(max_examples=40)
@given(host=hosts(), data=st.data())
def test_reordering_the_vms_reorders_the_features(host: Host, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(len(host)))), np.int64)
    other = Host(host.topology, host.vms.take(order))
    seen = []
    for h, rows in ((host, np.arange(len(host))), (other, order)):
        mind = make_mind("triage", h, UNHURRIED)
        encoder = Encoder(mind)
        rng = np.random.default_rng(3)
        for _ in range(3):
            r = reading(host, rng, holes=False)
            for array in (r.usage, r.demand_low, r.wait_ns):
                array[:] = array[rows]
            forecast_tick(mind, r)
            vms, whole = encoder.encode()
            conclude_tick(mind)
        seen.append((vms, whole))
    assert np.allclose(seen[0][0][order], seen[1][0], atol=1e-5)
    assert np.allclose(seen[0][1], seen[1][1], atol=1e-5)


@pytest.mark.parametrize("compiled", [kernel.compiled, None], ids=["compiled", "numpy"])
def test_means_and_swings_are_those_of_what_was_seen(compiled: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "compiled", compiled)
    host = Host(topology(), table(5))
    mind, rng = make_mind("triage", host), np.random.default_rng(1)
    encoder = Encoder(mind)
    names = [f.name for f in VM_FEATURES]
    means = [i for i, name in enumerate(names) if name.startswith("lately_")]
    swings = [i for i, name in enumerate(names) if name.startswith("swing_")]
    of = [names.index(remembered_of(names[i])) for i in means]
    assert [remembered_of(names[i]) for i in swings] == [names[k] for k in of] and len(of) > 10
    seen = []
    for _ in range(30):
        forecast_tick(mind, reading(host, rng, holes=False))
        seen.append(encoder.encode()[0].copy())
        conclude_tick(mind)
    mean, swing = seen[0][:, of].astype(float), np.zeros((len(host), len(of)))
    assert np.array_equal(seen[0][:, means], seen[0][:, of]) and not seen[0][:, swings].any()
    for row in seen[1:]:
        off = row[:, of] - mean
        mean += off / LATELY_TICKS
        swing += (np.abs(off) - swing) / LATELY_TICKS
        np.testing.assert_allclose(row[:, means], mean, atol=1e-4)
        np.testing.assert_allclose(row[:, swings], swing, atol=1e-4)
    assert (seen[-1][:, swings].max(axis=0) > 0.01).sum() > 8


@pytest.mark.parametrize("compiled", [kernel.compiled, None], ids=["compiled", "numpy"])
@pytest.mark.parametrize("crowded", [False, True])
def test_who_sleeps_stands_by_for_what_he_needed_as_far_as_there_is_room(
    crowded: bool, compiled: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "compiled", compiled)
    host = Host(topology(), table(4))
    mind = make_mind("triage", host)
    encoder = Encoder(mind)
    below, standby = ([f.name for f in VM_FEATURES].index(name) for name in ("below", "standby"))
    gates = [r for r in range(4) if r != CACHE]
    capacity = np.zeros(4)
    for pool in host.topology.pools:
        capacity[pool.resource] += pool.units
    most, shares = np.zeros(len(host)), []
    r = Reading.empty(len(host))
    r.dt_ns, r.limit[:], r.quality[:] = 10_000_000, np.inf, 0
    for tick in range(120):  # the first two were busy, and sleep; the others are as they were
        r.usage[:] = 0.2 * capacity / len(host)
        r.usage[:2] = (0.9 if tick < 20 else 0.02) * capacity / len(host)
        if crowded:
            r.usage[2:] = 1.8 * capacity / len(host)
        r.demand_low[:] = r.usage
        forecast_tick(mind, r)
        vms = encoder.encode()[0].astype(float)
        need, ask = mind.request.need[:, gates], mind.request.ask[:, gates]
        size = (need / capacity[gates]).sum(axis=1)
        most = np.maximum(most * (1.0 - MOST_FALL), size)
        np.testing.assert_allclose(vms[:, below], np.clip(np.log(most / size), 0.0, 6.0), atol=1e-5)
        # Were needs what it says, hardly more would be asked for than there is.
        ready = np.maximum(ask, need * np.exp(vms[:, standby])[:, None]).sum(axis=0)
        assert (ready <= np.maximum(ask.sum(axis=0), capacity[gates]) * (1.0 + 1e-5)).all()
        assert (vms[:, standby] >= 0.0).all() and (vms[:, standby] <= vms[:, below] + 1e-6).all()
        shares.append(vms[0, standby] / max(vms[0, below], 1e-9) if tick >= 60 else 0.0)
        conclude_tick(mind)
    assert vms[0, below] > 1.0
    assert max(shares[60:]) < 0.5 if crowded else min(shares[60:]) > 0.9


def test_memories_go_with_their_vm_and_a_new_one_has_none() -> None:
    vms = table(6)
    host = Host(topology(), vms.take(np.arange(5)))
    mind, rng = make_mind("triage", host), np.random.default_rng(2)
    encoder = Encoder(mind)
    for _ in range(12):
        forecast_tick(mind, reading(host, rng, holes=False))
        before = encoder.encode()[0].copy()
        conclude_tick(mind)
    swings = [i for i, f in enumerate(VM_FEATURES) if f.name.startswith("swing_")]
    most = dict(zip(host.vms.uuid, encoder._most, strict=True))
    mind.rebind(Host(host.topology, vms.take(np.array([3, 5, 0]))))
    forecast_tick(mind, reading(mind.host, rng, holes=False))
    after = encoder.encode()[0]
    kept = [most.get(u, 0.0) * (1.0 - MOST_FALL) for u in mind.host.vms.uuid]
    assert (encoder._most >= np.array(kept) - 1e-12).all() and kept[0] > 0.0 and kept[1] == 0.0
    # One tick moves a mean by no more than a share of how far a feature can be from it.
    span = np.array([f.high for f in VM_FEATURES])[swings] / LATELY_TICKS
    assert (np.abs(after[[0, 2]][:, swings] - before[[3, 0]][:, swings]) <= span + 1e-5).all()
    assert before[[3, 0]][:, swings].max() > 2 * span.min() and after[[0, 2]][:, swings].any(axis=1).all()
    assert not after[1, swings].any()
