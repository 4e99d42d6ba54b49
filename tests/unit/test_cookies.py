"""Core-scheduling cookies: what is asked of the kernel, and what becomes of its refusals."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from foreshare.envs.hal.linux import cookies
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.policies.errors import InputError


class Kernel:
    """Keeps cookies as kernel/sched/core_sched.c does: CREATE for a thread, SHARE_TO copies the caller's."""

    def __init__(self) -> None:
        self.cookies: dict[int, int] = {7: 0, 8: 0, 9: 5}
        self.made = 100
        self.refuse = 0

    def call(self, command: int, tid: int, into: int) -> None:
        me = threading.get_native_id()
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        if command == 1:
            self.made += 1
            self.cookies[tid or me] = self.made
        elif command == 2:
            if tid not in self.cookies:
                raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
            self.cookies[tid] = self.cookies.get(me, 0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(cookies, "_call", made.call)
    return made


def test_a_vm_gets_one_cookie_and_we_have_none(kernel: Kernel) -> None:
    cookies.give([7, 8, 4711])
    assert kernel.cookies[7] == kernel.cookies[8] != 0
    assert threading.get_native_id() not in kernel.cookies
    cookies.give([8])
    assert kernel.cookies[7] != kernel.cookies[8] != 0
    cookies.take_away([7, 8, 4711])
    assert kernel.cookies[7] == kernel.cookies[8] == 0 and kernel.cookies[9] == 5


def test_what_the_kernel_refuses_is_raised(kernel: Kernel) -> None:
    """Fault 4: a thread that is no number of one is never asked for."""
    with pytest.raises(ValueError, match="itself"):
        cookies.give([0])
    kernel.refuse = errno.EPERM
    with pytest.raises(PermissionError):
        cookies.give([7])


@pytest.mark.parametrize(
    ("refusal", "words"),
    [(errno.EINVAL, "CONFIG_SCHED_CORE"), (errno.ENODEV, "no SMT"), (errno.EPERM, "not permitted"), (0, "")],
)
def test_why_there_are_none(refusal: int, words: str, kernel: Kernel) -> None:
    kernel.refuse = refusal
    assert (words in cookies.why_none()) if words else cookies.why_none() == ""


def test_this_kernel_gives_an_answer() -> None:
    assert cookies.why_none() == "" or len(cookies.why_none()) > 20


def test_a_word_that_means_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="core_scheduling"):
        LinuxSpec(vms=(), core_scheduling="yes")  # type: ignore[arg-type]  # that is the point
