"""Allocators: from what VMs ask for to how many units each gets. All take the whole host in one call."""

from .base import Allocator, Request
from .fixed import Equal, Static
from .priority_sort import PrioritySort
from .water_filling import WaterFilling

__all__ = ["Allocator", "Equal", "PrioritySort", "Request", "Static", "WaterFilling"]
