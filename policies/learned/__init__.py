"""Learned corrections of triage: the network that makes them, the policy that asks it, and the bundle it travels in."""

from .network import Network
from .weights import SchemaError, Widths

__all__ = ["Network", "SchemaError", "Widths"]
