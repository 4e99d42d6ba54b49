"""The schema of what a policy sees: declared once, in bounds for any host, independent of the order of the VMs."""

from __future__ import annotations

import numpy as np
from hosts import hosts
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies.decide import UNHURRIED, conclude_tick, forecast_tick
from foreshare.policies.features import HOST_FEATURES, VM_FEATURES, Encoder, F, G, bounds, schema_hash
from foreshare.policies.host import Host
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
