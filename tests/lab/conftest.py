"""Fixtures of the lab's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from resctrl_guest import clean_mount


@pytest.fixture
def clean_groups() -> Iterator[None]:
    """Fail unless resctrl's groups are the same before and after."""
    with clean_mount():
        yield
