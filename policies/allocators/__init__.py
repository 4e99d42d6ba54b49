"""Allocators: from what VMs ask for to how many units each gets. All take the whole host in one call."""

from .backlog_water_filling import BacklogWaterFilling
from .base import Allocator, Request
from .fixed import Equal, Static
from .priority_sort import PrioritySort
from .triage import Triage, TriageKnobs
from .water_filling import WaterFilling

__all__ = [
    "Allocator", "BacklogWaterFilling", "Equal", "PrioritySort", "Request", "Static", "Triage", "TriageKnobs",
    "WaterFilling",
]  # fmt: skip
