"""What a processor offers to resctrl, as the CPUID leaves and quirks in arch/x86/kernel/cpu/resctrl/core.c say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Profile(Enum):
    """Kernels whose files read differently."""

    X86_OLD = "x86-old"
    """Up to about 6.14: values in schemata are padded to the widest resource's."""
    FS = "fs"
    """The code in fs/resctrl: values are not padded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One processor model, and how many sockets of it."""

    domains: dict[int, frozenset[int]] = field(
        default_factory=lambda: {0: frozenset(range(4)), 1: frozenset(range(4, 8))}
    )
    """CPUs of each L3 domain, by id."""
    l3_closids: int = 16
    mb_closids: int = 8
    rmids: int = 64
    cbm_bits: int = 12
    min_cbm_bits: int = 1
    sparse: bool = False
    shareable: int = 0x800
    cache_bytes: int = 16 << 20
    mb_min: int = 10
    mb_max: int = 100
    mb_gran: int = 10
    linear: bool = True
    amd: bool = False
    monitors: bool = True
    profile: Profile = Profile.X86_OLD

    @property
    def closids(self) -> int:
        """Groups that there can be, the default one included: closid_init() takes the least of the resources'."""
        return min(self.l3_closids, self.mb_closids)

    @property
    def cbm_mask(self) -> int:
        """The full mask."""
        return (1 << self.cbm_bits) - 1

    @property
    def width(self) -> int:
        """Columns that a value takes in schemata: rdt_init_padding() in the old profile."""
        if self.profile is Profile.FS:
            return 0
        return 4 if self.amd else max(3, (self.cbm_bits + 3) // 4)


INTEL = Hardware()
"""12 ways, bit 11 also the IO agents'; MBA in steps of 10 %; the same as the lab's guest."""
AMD = Hardware(
    domains={i: frozenset({i}) for i in range(8)}, mb_closids=16, min_cbm_bits=0, sparse=True, mb_min=0, mb_max=2048,
    mb_gran=1, linear=False, amd=True,
)  # fmt: skip
"""MBA in 1/8 GB/s, masks with gaps, mask 0 accepted; an L3 domain for each CPU, as the lab's guest has."""
HASWELL = Hardware(l3_closids=4, cbm_bits=20, min_cbm_bits=2, shareable=0xC0000, mb_closids=4)
"""Four classes, 20 ways, at least two of them (cache_alloc_hsw_probe()); with an MBA that it never had."""
