"""A cgroup v2 tree of plain files whose writes are checked, merged, rounded and refused as the kernel does it.

It keeps the rules of Linux 6.12 (kernel/cgroup, kernel/sched/core.c, block/blk-throttle.c); one table of vectors
(tests/cgroup_vectors.py) runs against it and, in the lab, against the kernel's own, and both must agree.
"""

from .tree import FakeCgroups

__all__ = ["FakeCgroups"]
