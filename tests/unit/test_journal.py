"""The journal is old or new, never half; whatever lies in its place, a start goes on and trusts nothing unproved."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreshare.policies.errors import HostError
from foreshare.runtime import journal
from foreshare.runtime.journal import StateDir

OLD: dict[str, Any] = {"items": [["a", 1], ["b", -1]], "kind": "old"}
NEW: dict[str, Any] = {"items": [["a", 2]], "kind": "new"}
HOLDER = """
import sys
from foreshare.runtime.journal import StateDir
with StateDir(sys.argv[1]) as state:
    state.write("linux", {"from": "the other"})
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(str(tmp_path / "state")) as it:
        yield it


def file_of(state: StateDir) -> Path:
    return Path(state.path) / "journal.json"


def one_line(error: pytest.ExceptionInfo[HostError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_what_is_written_is_read_back_until_it_is_cleared(state: StateDir) -> None:
    assert state.read() is None
    state.write("linux", OLD)
    entry = state.read()
    assert entry is not None
    assert (entry.hal, entry.originals, entry.same_boot) == ("linux", OLD, True)
    state.clear()
    assert state.read() is None
    state.clear()  # nothing there: not an error


class _Cut(BaseException):
    """Stands for the end of the process: no handler of ours may need to run."""


@pytest.mark.parametrize(
    ("call", "nth"), [("open", 1), ("write", 1), ("fsync", 1), ("fsync", 2), ("close", 1), ("replace", 1)]
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_system_call_leaves_old_or_new(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, after: bool
) -> None:
    state.write("linux", OLD)
    real, count = getattr(os, call), 0

    def cut(*args: Any, **keys: Any) -> Any:
        nonlocal count
        count += 1
        if count != nth:
            return real(*args, **keys)
        if after:
            real(*args, **keys)
        raise _Cut

    with monkeypatch.context() as patched:
        patched.setattr(journal.os, call, cut)
        with pytest.raises(_Cut):
            state.write("linux", NEW)
    entry = state.read()
    assert entry is not None and not state.sidelined
    renamed = (call == "replace" and after) or (call == "fsync" and nth == 2)
    assert entry.originals == (NEW if renamed else OLD)
    state.write("linux", NEW)  # what the crash left behind is in nobody's way
    again = state.read()
    assert again is not None and again.originals == NEW


def test_a_short_write_is_continued(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(journal.os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    state.write("linux", NEW)
    entry = state.read()
    assert entry is not None and entry.originals == NEW


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failing_disk_is_one_clear_line(state: StateDir, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    state.write("linux", OLD)

    def full(*args: object, **keys: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(journal.os, call, full)
        with pytest.raises(HostError) as error:
            state.write("linux", NEW)
    assert "No space left on device" in one_line(error)
    entry = state.read()
    assert entry is not None and entry.originals == OLD


def test_a_journal_too_large_to_be_read_again_is_refused(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MAX_BYTES", 4096)
    state.write("linux", OLD)
    with pytest.raises(HostError, match="nothing was changed"):
        state.write("linux", {"items": ["x" * 5000]})
    entry = state.read()
    assert entry is not None and entry.originals == OLD


def _signed(**changes: object) -> bytes:
    body = {"version": 1, "boot_id": journal.boot_id(), "hal": "linux", "originals": OLD} | changes
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 4096, b"{", b"[]", b"null", b'{"body": {}}', b"\xff\xfe", b"[" * 100_000,
        _signed()[:-20], _signed().replace(b'"a", 1', b'"a", 9'), _signed(version=2), _signed(hal=7),
        _signed(originals=[]), b'{"sha256": "", "body": null}', b" " * (17 << 20),
    ],
    ids=["empty", "zeros", "brace", "list", "null", "no-sum", "no-utf8", "deep", "cut", "altered", "version", "hal",
         "originals", "no-body", "huge"],
)  # fmt: skip
def test_what_does_not_check_out_is_put_aside(state: StateDir, data: bytes) -> None:
    """Fault 39."""
    file_of(state).write_bytes(data)
    assert state.read() is None
    assert state.sidelined == "journal.corrupt-0"
    assert not file_of(state).exists()
    aside = Path(state.path) / state.sidelined
    assert aside.read_bytes() == data
    state.write("linux", NEW)
    entry = state.read()
    assert entry is not None and entry.originals == NEW


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_something_else_in_its_place_is_put_aside(state: StateDir, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_bytes(_signed())
    match kind:
        case "link":
            file_of(state).symlink_to(elsewhere)
        case "folder":
            file_of(state).mkdir()
        case _:
            os.mkfifo(file_of(state))
    assert state.read() is None
    assert state.sidelined
    assert elsewhere.read_bytes() == _signed()
    state.write("linux", NEW)
    assert state.read() is not None


def test_every_corrupt_journal_keeps_its_own_name(state: StateDir) -> None:
    for number in range(3):
        file_of(state).write_text(f"broken {number}")
        assert state.read() is None
        assert state.sidelined == f"journal.corrupt-{number}"
    for number in range(3, 1000):
        (Path(state.path) / f"journal.corrupt-{number}").touch()
    file_of(state).write_text("the newest")
    assert state.read() is None
    assert (Path(state.path) / state.sidelined).read_text() == "the newest"


def test_a_disk_that_cannot_put_aside_or_clear_is_one_clear_line(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(*args: object, **keys: object) -> None:
        raise OSError(30, "Read-only file system")

    file_of(state).write_text("broken")
    monkeypatch.setattr(journal.os, "rename", frozen)
    with pytest.raises(HostError) as error:
        state.read()
    assert "Read-only file system" in one_line(error)
    monkeypatch.setattr(journal.os, "unlink", frozen)
    with pytest.raises(HostError) as error:
        state.clear()
    assert "Read-only file system" in one_line(error)


def test_a_journal_of_another_boot_is_recognised(state: StateDir) -> None:
    """Fault 40."""
    file_of(state).write_bytes(_signed(boot_id="00000000-0000-0000-0000-000000000000"))
    entry = state.read()
    assert entry is not None and not entry.same_boot and not state.sidelined


def _holder(path: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lease_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    """Fault 42."""
    path = str(tmp_path / "state")
    with _holder(path) as process:
        with pytest.raises(HostError) as error, StateDir(path):
            pass
        assert "another foreshare manages this host" in one_line(error)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "state" / "lock").exists()
        with StateDir(path) as state:  # the file is left, the lock is not
            entry = state.read()
            assert entry is not None and entry.originals == {"from": "the other"}


def test_a_lease_keeps_the_same_process_out_too_and_can_be_taken_again(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    before = len(os.listdir("/proc/self/fd"))
    with StateDir(path), pytest.raises(HostError, match="another foreshare"), StateDir(path):
        pass
    with StateDir(path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


def _refused(path: Path) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError) as error, StateDir(str(path)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
    text = one_line(error)
    assert str(path) in text
    return text


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    assert "must belong to the user who runs foreshare" in _refused(folder)


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    mine = os.geteuid()
    monkeypatch.setattr(journal.os, "geteuid", lambda: mine + 1)
    assert "must belong to the user who runs foreshare" in _refused(folder)


def test_a_link_a_file_and_no_parent_are_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(real)
    assert "not a link" in _refused(link)
    assert not list(real.iterdir())
    file = tmp_path / "file"
    file.touch()
    _refused(file)
    _refused(file / "below")


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder, victim = tmp_path / "state", tmp_path / "victim"
    folder.mkdir(mode=0o700)
    (folder / "lock").symlink_to(victim)
    _refused(folder)
    assert not victim.exists()


def test_the_folder_that_is_made_is_for_its_user_only(state: StateDir) -> None:
    state.write("linux", OLD)
    assert os.stat(state.path).st_mode & 0o777 == 0o700
    assert file_of(state).stat().st_mode & 0o777 == 0o600
