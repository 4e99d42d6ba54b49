"""The command line: one module for each verb, imported when the verb is used."""

from .main import main

__all__ = ["main"]
