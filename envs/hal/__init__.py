"""The hardware abstraction layer: one interface over simulated, recorded and real hosts."""

from foreshare.policies.host import Host, Isolation, Placement, Pool, Resource, Topology, VmTable
from foreshare.policies.reading import Quality, Reading

from .clock import MonotonicClock
from .protocol import Actuation, Clock, Complains, Hal, IsComputed, Telemetry, TopologySource
from .spec import Amounts, VmSpec, resolve
from .types import Capability, Control, Plan, Receipt, WriteFailure

__all__ = [
    "Actuation",
    "Amounts",
    "Capability",
    "Clock",
    "Complains",
    "Control",
    "Hal",
    "Host",
    "IsComputed",
    "Isolation",
    "MonotonicClock",
    "Placement",
    "Plan",
    "Pool",
    "Quality",
    "Reading",
    "Receipt",
    "Resource",
    "Telemetry",
    "Topology",
    "TopologySource",
    "VmSpec",
    "VmTable",
    "WriteFailure",
    "resolve",
]
