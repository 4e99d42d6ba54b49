"""A resctrl file system in memory that validates, rounds, merges, runs out and complains as the kernel does.

It keeps the rules of Linux 6.12's fs (arch/x86/kernel/cpu/resctrl, later fs/resctrl); one table of vectors
(tests/resctrl_vectors.py) runs against it and, in the lab, against the kernel's own, and both must agree.
"""

from .hardware import AMD, HASWELL, INTEL, Hardware, Profile
from .tree import FakeResctrl

__all__ = ["AMD", "HASWELL", "INTEL", "FakeResctrl", "Hardware", "Profile"]
