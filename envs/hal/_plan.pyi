from numpy import int8
from numpy.typing import NDArray

from foreshare.policies.host import BoolArray, FloatArray, IntArray

def build(
    head: IntArray,
    active: BoolArray,
    apart: BoolArray,
    zone: IntArray,
    movable: BoolArray,
    units: IntArray,
    cpus: BoolArray,
    ways: IntArray,
    wanted_units: IntArray,
    wanted_cpus: BoolArray,
    wanted_ways: IntArray,
    control: NDArray[int8],
    vm: IntArray,
    value: IntArray,
    cpu_sets: BoolArray,
    now: IntArray,
    /,
) -> tuple[int, int, bool]: ...
def carry_out(
    head: IntArray,
    pool: IntArray,
    isolated: BoolArray,
    present: BoolArray,
    control: NDArray[int8],
    vm: IntArray,
    value: IntArray,
    cpu_sets: BoolArray,
    units: IntArray,
    cpus: BoolArray,
    ways: IntArray,
    gained: IntArray,
    refused: BoolArray,
    before: IntArray,
    /,
) -> int: ...
def in_force(head: IntArray, present: BoolArray, units: IntArray, cpus: BoolArray, out: FloatArray, /) -> None: ...
