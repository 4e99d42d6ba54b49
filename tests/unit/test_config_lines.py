"""The TOML locator: the right line for every key, whatever the document looks like."""

from __future__ import annotations

import itertools
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.runtime.config.toml_lines import MAX_DEPTH, TomlPath, TooDeepError, index_lines, locate

DOCUMENT = """\
# a comment with [brackets] and = signs
title = "x" # 2

[host]
"tick ms" = 10
'lit.eral' = 1
a.b."c d" = 2
text = \"\"\"
[not.a.table]
key = "no \\\"\"\" key"
\"\"\"
after = 3
raw = '''
vm = 1
''''
io = [  # 16
  { device = "/dev/sda", bandwidth = "1GB/s" },

  { device = "/dev/sdb", limits = { read = 1, write = [
      2,
      3 ] } }, # 21
]
[[vm]]
name = "a"
reservation = { cpu = 1, cache = 2 }
[vm.more]
deep.er = 5
[[vm.disk]]
size = 1
[[vm.disk]]
size = 2
[ vm . "last" ]
x = 1979-05-27 07:32:00
[[vm]]
name = "b]#["
[vm.cap]
cpu = 2
[host.sub]
z = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("host",), 4),
        (("host", "tick ms"), 5),
        (("host", "lit.eral"), 6),
        (("host", "a"), 7),
        (("host", "a", "b", "c d"), 7),
        (("host", "text"), 8),
        (("host", "after"), 12),
        (("host", "raw"), 13),
        (("host", "io"), 16),
        (("host", "io", 0), 17),
        (("host", "io", 0, "bandwidth"), 17),
        (("host", "io", 1), 19),
        (("host", "io", 1, "limits", "write"), 19),
        (("host", "io", 1, "limits", "write", 0), 20),
        (("host", "io", 1, "limits", "write", 1), 21),
        (("vm",), 23),
        (("vm", 0), 23),
        (("vm", 0, "name"), 24),
        (("vm", 0, "reservation", "cpu"), 25),
        (("vm", 0, "more"), 26),
        (("vm", 0, "more", "deep", "er"), 27),
        (("vm", 0, "disk", 0, "size"), 29),
        (("vm", 0, "disk", 1), 30),
        (("vm", 0, "disk", 1, "size"), 31),
        (("vm", 0, "last", "x"), 33),
        (("vm", 1), 34),
        (("vm", 1, "name"), 35),
        (("vm", 1, "cap", "cpu"), 37),
        (("host", "sub", "z"), 39),
        # What is not there: the nearest thing around it.
        (("vm", 1, "uuid"), 34),
        (("vm", 0, "reservation", "memory"), 25),
        (("nothing", "here"), 1),
        ((), 1),
    ],
)
def test_locates_every_kind_of_key(path: TomlPath, line: int) -> None:
    tomllib.loads(DOCUMENT)  # the oracle accepts it
    assert locate(DOCUMENT, path) == line


def test_windows_line_ends_count_once() -> None:
    assert locate(DOCUMENT.replace("\n", "\r\n"), ("vm", 1, "cap", "cpu")) == 37


def test_an_explicit_header_beats_an_implied_table() -> None:
    assert locate("[a.b]\nx = 1\n[a]\ny = 2\n", ("a",)) == 3


def test_nesting_is_bounded() -> None:
    assert locate("x = " + "[\n" * MAX_DEPTH + "]" * MAX_DEPTH, ("x", *[0] * 60)) == 61
    for text in ("\nx = " + "[" * 1000, "\n" + "a." * 1000 + "b = 1", "\n[" + "a." * 64 + "b]", "\nx={" + "a.b={" * 40):
        with pytest.raises(TooDeepError) as caught:
            index_lines(text)
        assert caught.value.line == 2


def leaves(value: Any, path: TomlPath = ()) -> list[tuple[TomlPath, Any]]:
    if isinstance(value, dict):
        return [x for k, v in value.items() for x in leaves(v, (*path, k))]
    if isinstance(value, list):
        return [x for i, v in enumerate(value) for x in leaves(v, (*path, i))]
    return [(path, value)]


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=0, max_size=6) | st.sampled_from(
    ["a", "b", "vm", "tick-ms", "x.y", "[t]", "#", 'q"', "it's", "=", "1"]
)
SHAPES = st.recursive(
    st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


class Writer:
    """Writes a random value in a random layout; every leaf is a number that occurs once in the document."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.number = draw, itertools.count(1000)

    def key(self, key: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_-]+", key) and self.draw(st.booleans()):
            return key
        if "'" not in key and self.draw(st.booleans()):
            return f"'{key}'"
        return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def gap(self) -> str:
        return self.draw(st.sampled_from(["", " ", "\n", "\n\n  ", " # ] } , [x] = 'y\n"]))

    def leaf(self) -> str:
        n = next(self.number)
        return self.draw(
            st.sampled_from(
                [
                    f"{n}",
                    f'"{n} # ]"',
                    f"'{n}='",
                    f"{n}.5",
                    f'"""{n}\n[x]\ny = 1\\""" """',
                    f"'''{n}\n]'''''",
                    f'"""{n}\n]"""""',
                ]
            )
        )

    def value(self, shape: Any, *, inline: bool = False) -> str:
        if shape is None:
            return self.leaf()
        if isinstance(shape, list):
            body = "".join(f"{self.gap()}{self.value(s)}{self.gap()}," for s in shape)
            return f"[{body}{self.gap()}]"
        return "{ " + ", ".join(f"{self.key(k)} = {self.value(v, inline=True)}" for k, v in shape.items()) + " }"

    def table(self, shape: dict[str, Any], header: list[str]) -> str:
        """Plain keys first, then sub-tables with headers of their own."""
        head = [self.key(k) for k in header]
        out, later = "", []
        for k, v in shape.items():
            if isinstance(v, dict) and self.draw(st.booleans()):
                later.append((k, v, False))
            elif isinstance(v, list) and v and all(isinstance(x, dict) for x in v) and self.draw(st.booleans()):
                later.append((k, v, True))
            elif isinstance(v, dict) and v and self.draw(st.booleans()):
                for k2, v2 in v.items():
                    out += f"{self.key(k)} . {self.key(k2)}= {self.value(v2)}\n"
            else:
                out += f"{self.key(k)} = {self.value(v)} # [tail]\n"
        for k, v, array in later:
            name = ".".join([*head, self.key(k)])
            for element in v if array else [v]:
                out += f"\n{'[[' if array else '['}{name}{']]' if array else ']'} # x = 1\n"
                out += self.table(element, [*header, k])
        return out


@given(st.data(), st.dictionaries(KEYS, SHAPES, max_size=4))
def test_finds_every_leaf_of_generated_documents(data: st.DataObject, shape: dict[str, Any]) -> None:
    text = Writer(data.draw).table(shape, [])
    found = index_lines(text)
    for path, value in leaves(tomllib.loads(text)):
        if isinstance(value, list | dict):
            continue
        number = re.match(r"\d+", str(value))
        assert number is not None
        expected = next(i for i, s in enumerate(text.split("\n"), 1) if re.search(rf"(?<!\d){number.group()}(?!\d)", s))
        assert found.get(path) == expected, (path, text)


@given(st.text("ab.=[]{}\"'#,\n \\1", max_size=60))
def test_any_text_ends_and_stays_inside(text: str) -> None:
    lines = index_lines(text)
    assert all(1 <= n <= text.count("\n") + 1 for n in lines.values())
