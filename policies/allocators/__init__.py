"""Allocators: from what VMs ask for to how many units each gets. All take the whole host in one call."""

from .backlog_water_filling import BacklogWaterFilling
from .base import Allocator, Request
from .bayesian import Bayesian, BayesianKnobs
from .fixed import Equal, Static
from .heracles import Heracles, HeraclesKnobs
from .parties import Parties, PartiesKnobs
from .priority_sort import PrioritySort
from .side_by_side import SideBySide
from .smartharvest import SmartHarvest, SmartHarvestKnobs
from .triage import Triage, TriageKnobs
from .water_filling import WaterFilling

__all__ = [
    "Allocator", "BacklogWaterFilling", "Bayesian", "BayesianKnobs", "Equal", "Heracles", "HeraclesKnobs", "Parties",
    "PartiesKnobs", "PrioritySort", "Request", "SideBySide", "SmartHarvest", "SmartHarvestKnobs", "Static", "Triage",
    "TriageKnobs", "WaterFilling",
]  # fmt: skip
