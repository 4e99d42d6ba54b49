from numpy import int8
from numpy.typing import NDArray

from foreshare.policies._kernel import Held
from foreshare.policies.host import BoolArray, FloatArray, IntArray

def build(memo: Held, arrays: tuple[object, ...], /) -> tuple[int, int, bool]: ...
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
