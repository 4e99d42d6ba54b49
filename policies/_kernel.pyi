from numpy import float32, generic, uint8
from numpy.typing import NDArray

from .host import BoolArray, FloatArray, IntArray

Float32Array = NDArray[float32]
Held = object
"""What was handed over once, with its arrays: opaque."""

def water_fill(tables: IntArray, hosts: int, ask: FloatArray, out: IntArray, /) -> None: ...
def room_left(
    tables: IntArray,
    hosts: int,
    ask: FloatArray,
    order: IntArray,
    per_capacity: FloatArray,
    out: FloatArray,
    /,
) -> None: ...
def priority_sort(
    tables: IntArray,
    hosts: int,
    ask: FloatArray,
    order: IntArray,
    refused: BoolArray,
    out: IntArray,
    /,
) -> None: ...
def triage(
    tables: IntArray,
    hosts: int,
    ask: FloatArray,
    need: FloatArray,
    backlog: FloatArray,
    weight: FloatArray,
    knobs: FloatArray,
    admitted: BoolArray,
    out: IntArray,
    /,
) -> None: ...
def admit(
    tables: IntArray,
    hosts: int,
    wanted: IntArray,
    ask: FloatArray,
    previous: IntArray,
    frozen: BoolArray | None,
    hysteresis: bool,
    out: IntArray,
    /,
) -> int: ...
def estimate(
    tables: IntArray,
    hosts: int,
    usage: FloatArray,
    demand_low: FloatArray,
    limit: FloatArray,
    wait_ns: FloatArray,
    quality: NDArray[uint8],
    /,
    *own: object,
) -> None: ...
def follow(
    tables: IntArray,
    hosts: int,
    knobs: FloatArray,
    demand: FloatArray,
    backlog: FloatArray,
    level: FloatArray,
    error: FloatArray,
    before: FloatArray,
    ways: FloatArray,
    fresh: BoolArray,
    mean: FloatArray,
    upper: FloatArray,
    clearing: FloatArray,
    /,
) -> None: ...
def network(
    widths: IntArray,
    hosts: int,
    n: int,
    weights: NDArray[float32],
    vms: NDArray[float32],
    there: BoolArray,
    host: NDArray[float32],
    out: NDArray[float32],
    /,
) -> None: ...
def place_ways(
    head: IntArray,
    order: IntArray,
    first: BoolArray,
    here: BoolArray | None,
    want: IntArray,
    start: IntArray,
    count: IntArray,
    masks: IntArray,
    into: IntArray,
    /,
) -> None: ...
def check(
    tables: IntArray,
    hosts: int,
    ticks: IntArray,
    moved: bool,
    passed: bool,
    top: FloatArray,
    most: FloatArray,
    usage: FloatArray,
    quality: NDArray[uint8],
    held: IntArray,
    last: FloatArray,
    same: IntArray,
    bad: IntArray,
    flags: BoolArray,
    lies: BoolArray,
    /,
) -> int: ...
def request(
    tables: IntArray,
    hosts: int,
    headroom: float,
    mean: FloatArray,
    upper: FloatArray,
    clearing: FloatArray,
    quality: NDArray[uint8] | None,
    in_doubt: NDArray[uint8],
    unsure: BoolArray,
    present: BoolArray,
    ask: FloatArray,
    need: FloatArray,
    /,
) -> None: ...
def stand_back(
    tables: IntArray, hosts: int, weight: FloatArray, over: FloatArray, thrift: float, out: FloatArray, /
) -> None: ...
def note_over(
    tables: IntArray, hosts: int, units: IntArray, per_share: FloatArray, ticks: float, over: FloatArray, /
) -> None: ...
def hold_history(arrays: tuple[object, ...], /) -> Held: ...
def hold_mixture(arrays: tuple[object, ...], size: int, /) -> Held: ...
def hold_lstm(arrays: tuple[object, ...], size: int, /) -> Held: ...
def push(
    history: Held,
    newest: int,
    before: int,
    gap: bool,
    whole: bool,
    demand: FloatArray | Float32Array,
    waiting: FloatArray | Float32Array,
    censored: BoolArray,
    /,
) -> bool: ...
def mix(
    history: Held,
    newest: int,
    mixture: Held,
    count: int,
    options: Float32Array,
    out: Float32Array,
    /,
) -> None: ...
def show(history: Held, newest: int, out: Float32Array, /) -> None: ...
def expect(history: Held, newest: int, mixture: Held, count: int, /) -> None: ...
def lstm(history: Held, newest: int, lstm: Held, out: Float32Array, /) -> None: ...
def memo() -> Held: ...
def touch(*memos: Held) -> None: ...
def foresee(
    memo: Held,
    arrays: tuple[object, ...],
    usage: FloatArray,
    demand_low: FloatArray,
    limit: FloatArray,
    wait_ns: FloatArray,
    quality: NDArray[uint8],
    present: BoolArray,
    looked: bool,
    moved: bool,
    dt_ns: int,
    per_ns: float,
    near_limit: float,
    headroom: float,
    slot: int,
    /,
) -> int: ...
def consult(memo: Held, arrays: tuple[object, ...], limit: float, out: IntArray, /) -> None: ...
def serve(
    memo: Held,
    arrays: tuple[object, ...],
    ask: FloatArray,
    need: FloatArray,
    backlog: FloatArray,
    out: IntArray,
    /,
) -> None: ...
def conclude(
    memo: Held,
    arrays: tuple[object, ...],
    proposal: NDArray[generic],
    anchor: IntArray | None,
    hysteresis: bool,
    share: float,
    /,
) -> tuple[int, int]: ...
def settle(memo: Held, arrays: tuple[object, ...], units: IntArray, /) -> None: ...
