"""Where a key stands in a TOML document.

``tomllib`` says what a document means, not where: this scanner walks over a document that tomllib has accepted and
notes the line of every table, key and array element. Grammar: TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

TomlPath = tuple[str | int, ...]

MAX_DEPTH: Final = 64
"""Deepest path that is followed. tomllib's own memory grows with the square of it."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_SPACE: Final = re.compile(r"[ \t]+")
# The long forms come first. A multi-line string may end in up to two quotes of its own before the closing three.
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY: Final = re.compile(r"[^\s\"'=.,#\[\]{}]+")
_SCALAR: Final = re.compile(r"[^,#\[\]{}\n]+")
_REST_OF_LINE: Final = re.compile(r"[^\n]*\n?")


class TooDeepError(ValueError):
    """Tables, dotted keys or arrays nest deeper than MAX_DEPTH at ``line``."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nested more than {MAX_DEPTH} deep")
        self.line = line


def locate(text: str, path: TomlPath) -> int:
    """Return the 1-based line of ``path`` in ``text``, such as ``("vm", 2, "reservation", "cpu")``.

    Where the path does not exist (a key that is missing), the line of its longest part that does; 1 where none does.
    """
    return nearest(index_lines(text), path)


def nearest(lines: dict[TomlPath, int], path: TomlPath) -> int:
    """Return the line of ``path``, or of its longest prefix, from what :func:`index_lines` returned."""
    for length in range(len(path), 0, -1):
        line = lines.get(path[:length])
        if line is not None:
            return line
    return 1


def index_lines(text: str) -> dict[TomlPath, int]:
    """Return the 1-based line of every table, key and array element of ``text``.

    ``text`` is a document that tomllib accepts; of any other it returns what it could make out. Raises TooDeepError
    and nothing else.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


class _Scanner:
    """One pass over a document, in time and memory proportional to its length."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[TomlPath, int] = {}
        self.table: TomlPath = ()
        self.elements: dict[TomlPath, int] = {}  # how many [[headers]] each array of tables has had

    def scan(self) -> None:
        while self._blank():
            if self._peek() == "[":
                self._header()
            else:
                self._pair()
            self._take(_REST_OF_LINE)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        """Move over ``pattern`` if it stands here; return what it was."""
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        taken = found.group()
        self.line += taken.count("\n")
        return taken

    def _skip(self, count: int = 1) -> None:
        self.at += count

    def _blank(self) -> bool:
        """Move over spaces, newlines and comments; return whether anything is left."""
        self._take(_BLANK)
        return self.at < len(self.text)

    def _key(self) -> tuple[str, ...]:
        """Move over a dotted key; return its parts."""
        parts: list[str] = []
        while True:
            self._take(_SPACE)
            part = self._take(_BARE_KEY)
            if not part:
                quoted = self._take(_STRING)
                if not quoted:
                    break
                part = _unquote(quoted)
            parts.append(part)
            if len(parts) > MAX_DEPTH:
                raise TooDeepError(self.line)
            self._take(_SPACE)
            if self._peek() != ".":
                break
            self._skip()
        return tuple(parts)

    def _note(self, base: TomlPath, parts: tuple[str, ...], line: int) -> TomlPath:
        """Record a dotted key below ``base``; the tables that it implies stand there too, unless already seen."""
        if len(base) + len(parts) > MAX_DEPTH:
            raise TooDeepError(line)
        path = base
        for part in parts:
            path = (*path, part)
            self.lines.setdefault(path, line)
        if parts:
            self.lines[path] = line
        return path

    def _header(self) -> None:
        line, is_array = self.line, self.text.startswith("[[", self.at)
        self._skip(2 if is_array else 1)
        parts = self._key()
        path: TomlPath = ()
        for part in parts[:-1]:
            path = self._enter((*path, part), line)
        if not parts:
            return
        path = (*path, parts[-1])
        if is_array:
            count = self.elements.get(path, 0)
            self.elements[path] = count + 1
            self.lines.setdefault(path, line)
            path = (*path, count)
        elif path in self.elements:
            path = self._enter(path, line)
        self.lines[path] = line
        self.table = path

    def _enter(self, path: TomlPath, line: int) -> TomlPath:
        """Return ``path``, or where it is an array of tables, its newest element."""
        self.lines.setdefault(path, line)
        count = self.elements.get(path, 0)
        return (*path, count - 1) if count else path

    def _pair(self) -> None:
        line = self.line
        parts = self._key()
        if not parts or self._peek() != "=":
            return
        self._skip()
        self._value(self._note(self.table, parts, line))

    def _value(self, path: TomlPath) -> None:
        """Move over one value with everything in it, noting keys and elements."""
        # Each container: its path, and the index of the element that comes next, or -1 in an inline table.
        stack: list[tuple[TomlPath, int]] = []
        while True:
            self._take(_SPACE)
            here = self._peek()
            if here == "[":
                self._skip()
                stack.append((path, 0))
            elif here == "{":
                self._skip()
                stack.append((path, -1))
            elif not self._take(_STRING) and not self._take(_SCALAR):
                return
            following = self._next(stack)
            if following is None:
                return
            path = following

    def _next(self, stack: list[tuple[TomlPath, int]]) -> TomlPath | None:
        """Move to the value that comes next in the innermost open container; return its path, or None at the end."""
        while stack:
            if not self._blank():
                return None
            here = self._peek()
            if here in "]}":
                self._skip()
                stack.pop()
            elif here == ",":
                self._skip()
            else:
                base, index = stack[-1]
                if index >= 0:
                    if len(base) >= MAX_DEPTH:
                        raise TooDeepError(self.line)
                    stack[-1] = (base, index + 1)
                    self.lines[(*base, index)] = self.line
                    return (*base, index)
                line = self.line
                parts = self._key()
                if not parts or self._peek() != "=":
                    return None
                self._skip()
                return self._note(base, parts, line)
        return None


def _unquote(quoted: str) -> str:
    """Return the text of a quoted key, escapes resolved; the quotes' own content where it is not valid TOML."""
    try:
        value = tomllib.loads(f"k = {quoted}")["k"]
    except tomllib.TOMLDecodeError:
        return quoted[1:-1]
    return str(value)
