from numpy import float32, uint8
from numpy.typing import NDArray

from .host import BoolArray, FloatArray, IntArray

Float32Array = NDArray[float32]

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
    scale: FloatArray,
    options: FloatArray,
    usage: FloatArray,
    demand_low: FloatArray,
    limit: FloatArray,
    wait_ns: FloatArray,
    quality: NDArray[uint8],
    own_usage: FloatArray,
    demand: FloatArray,
    backlog: FloatArray,
    delay_ticks: FloatArray,
    work: FloatArray,
    level: FloatArray,
    usual: FloatArray,
    sure: BoolArray,
    known: BoolArray,
    still: IntArray,
    /,
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
def push(
    history: tuple[object, ...],
    newest: int,
    before: int,
    gap: bool,
    whole: bool,
    demand: FloatArray,
    waiting: FloatArray,
    censored: BoolArray,
    /,
) -> bool: ...
def mix(
    history: tuple[object, ...],
    newest: int,
    mixture: tuple[object, ...],
    count: int,
    options: Float32Array,
    out: Float32Array,
    /,
) -> None: ...
