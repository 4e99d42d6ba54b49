"""The table of faults is complete, and every test in it exists and names its fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from faults import ELSEWHERE, TESTS

ALL = range(1, 56)
ROOT = Path(__file__).parents[1]
_NAMED = re.compile(r"[Ff]aults? ((?:\d+(?:, | and | to )?)+)")


def docstrings(path: Path) -> dict[str, str]:
    """Return the docstring of every test in a file."""
    tree = ast.parse(path.read_text())
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}


def numbers(text: str) -> set[int]:
    out: set[int] = set()
    for found in _NAMED.findall(text):
        for first, last in re.findall(r"(\d+) to (\d+)", found):
            out |= set(range(int(first), int(last) + 1))
        out |= {int(n) for n in re.findall(r"\d+", found)}
    return out


def test_every_fault_is_somewhere_and_only_once() -> None:
    assert sorted([*TESTS, *ELSEWHERE]) == list(ALL)
    assert all(ELSEWHERE.values()) and all(TESTS.values())


@pytest.mark.parametrize("number", sorted(TESTS))
def test_the_tests_of_a_fault_exist_and_name_it(number: int) -> None:
    for name in TESTS[number]:
        file, _, function = name.partition("::")
        said = docstrings(ROOT / file)
        assert function in said, f"{file} has no {function}"
        assert number in numbers(said[function]), f"{name} does not name fault {number}: {said[function]!r}"
