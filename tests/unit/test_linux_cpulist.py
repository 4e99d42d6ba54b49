from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.hal.linux.cpulist import CpuLists, form, parse
from foreshare.policies.errors import InputError

sets = st.frozensets(st.integers(0, 600), max_size=80)


@given(sets)
def test_what_is_formed_parses_to_the_same_set(cpus: frozenset[int]) -> None:
    assert parse(form(cpus)) == cpus


@given(sets)
def test_no_shorter_list_means_the_same(cpus: frozenset[int]) -> None:
    runs = sum(c - 1 not in cpus for c in cpus)
    assert (form(cpus).count(",") + 1 if cpus else 0) == runs


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(InputError):
        assert all(isinstance(c, int) and c >= 0 for c in parse(text))


@pytest.mark.parametrize("text", ["3-1", "1,,2", "-1", "a", "0-7:2/4", "1-", "0x1", "99999999999", "٣", "1 2"])
def test_lists_that_the_kernel_never_prints_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


def test_formats_as_the_kernel_prints() -> None:
    assert form({8, 0, 1, 2, 5}) == "0-2,5,8"
    assert parse(" 0-2,5,8\n") == {0, 1, 2, 5, 8}
    assert form(()) == ""
    assert parse("\n") == frozenset()


def test_rows_are_over_the_managed_cpus_only() -> None:
    lists = CpuLists(np.array([2, 3, 9]))
    row, count = lists.row(b"0-2,9-10\n")
    assert (row.tolist(), count) == ([True, False, True], 2)
    assert not row.flags.writeable, "handed out again and again"
    assert lists.payload(np.array([True, True, False]).tobytes()) == b"2-3"
    assert lists.payload(np.zeros(3, bool).tobytes()) == b"\n", "an empty write would be no write"
