"""Reference oracles: what could be had by one who knows the state of every queue, or even the next 100 ms.

============  ==================================================================================================
paying        true backlog, ages and arrivals of the horizon; real units, delay and warm-up; pays for what moves
free          the same where moving costs nothing: judged in a world without warm-up (:func:`world_of`)
state         true backlog and ages, the arrivals of the tick just done repeated: no future
horizon       a linear program over a whole window, a bound from below on V, for tests (:mod:`.horizon`)
triage        no optimiser: triage, fed by true demand and backlog (:mod:`.informed`)
champion      the same with the champion that ships; with the two above it tells what is lost to what cannot be seen
============  ==================================================================================================

None of the first three is an upper bound: they optimise a window again in every tick, and backlog and the costs of
moves reach beyond it. They decide through ``decide_tick`` like any policy; the guard stays on.
"""

from .allocator import ORACLES, OracleAllocator, TrueDemand, oracle_mind, world_of
from .foresight import Foresight
from .informed import INFORMED, informed_mind
from .options import OracleKnobs

__all__ = [
    "INFORMED",
    "ORACLES",
    "Foresight",
    "OracleAllocator",
    "OracleKnobs",
    "TrueDemand",
    "informed_mind",
    "oracle_mind",
    "world_of",
]
