"""Learned corrections of triage: the network that makes them, and the policy that asks it."""

from .network import Network
from .weights import SchemaError, Widths

__all__ = ["Network", "SchemaError", "Widths"]
