"""The errors that foreshare raises: one root, typed fields, safe to send between processes."""

from __future__ import annotations


class ForeshareError(Exception):
    """Root of every error of ours. Its text is one line that a person can act upon."""

    def __reduce__(self) -> tuple[object, ...]:
        # Rebuilt from its fields, whatever __init__ takes, so that it survives a trip between processes.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[ForeshareError], args: tuple[object, ...], fields: dict[str, object]) -> ForeshareError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class InputError(ForeshareError):
    """What the user gave is wrong; nothing was changed. Ends a command with exit code 2."""


class ConfigError(InputError):
    """A configuration file says something that cannot be.

    ``path`` and ``line`` (1-based, 0 if unknown) say where.
    """

    def __init__(self, why: str, *, path: str = "", line: int = 0) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(f"{where}{why}")
        self.why, self.path, self.line = why, path, line


class CapacityError(InputError):
    """More is promised than the host has."""


class HostError(InputError):
    """The host cannot do what was asked: a missing cgroup, no permission, no such controller."""


class HalError(ForeshareError):
    """A system call failed: ``op`` on ``target`` (a file or thread), with the kernel's ``errno``."""

    def __init__(self, op: str, target: str, errno: int, text: str = "") -> None:
        super().__init__(f"{op} {target}: {text or errno}")
        self.op, self.target, self.errno, self.text = op, target, errno, text


class TraceError(InputError):
    """A recording cannot be read or does not follow the format."""
