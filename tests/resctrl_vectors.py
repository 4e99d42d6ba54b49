"""What the kernel's resctrl answers: one table, played against the tree in memory and, in the lab, the real thing.

A step is (operation, target, payload, expected): the errno's name or "ok", then what ``last_cmd_status`` reads
afterwards (None: not looked at), then a file and what it reads (None: not looked at). ``{me}`` is a living thread.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from foreshare.envs.hal.linux.resctrl.files import DIRECTORY, Files


@dataclass(frozen=True)
class Step:
    """One call and what must come of it."""

    op: str
    """write, mkdir, rmdir, rename or read."""
    path: str
    data: str = ""
    result: str = "ok"
    status: str | None = None
    reads: tuple[str, str] | None = None
    """(file, text) after the call; the text without trailing newline."""


def w(
    path: str, data: str, result: str = "ok", status: str | None = None, reads: tuple[str, str] | None = None
) -> Step:
    return Step("write", path, data, result, status, reads)


BOTH: dict[str, list[Step]] = {
    "grammar": [
        w("a/schemata", "MB:0=20", "EINVAL"),
        w("a/schemata", "L4:0=1\n", "EINVAL", "Unknown or unsupported resource name 'L4'"),
        w("a/schemata", "l3:0=1\n", "EINVAL", "Unknown or unsupported resource name 'l3'"),
        w("a/schemata", "MB:0=20", "EINVAL", "Unknown or unsupported resource name 'l3'"),  # stale: not cleared
        w("a/schemata", "\n", "EINVAL", "Missing ':'"),
        w("a/schemata", "L3\n", "EINVAL", "Missing ':'"),
        w("a/schemata", "L3:\n", "EINVAL", "Missing 'L3' value"),
        w("a/schemata", "L3:0\n", "EINVAL", "Missing '=' or non-numeric domain"),
        w("a/schemata", "L3:x=1\n", "EINVAL", "Missing '=' or non-numeric domain"),
        w("a/schemata", "L3: 0=3\n", "EINVAL", "Missing '=' or non-numeric domain"),
        w("a/schemata", "L3:0=3;;1=3\n", "EINVAL", "Missing '=' or non-numeric domain"),
        w("a/schemata", "L3:0=3\n\n", "EINVAL", "Missing ':'"),
        w("a/schemata", "L3:0=3;\n", "ok", "ok"),
        w("a/schemata", "L3:0= 3 \n", "ok", "ok"),
        w("a/schemata", " L3 :0=0X3\n", "ok", "ok"),
        w("a/schemata", "L3:00=3\n", "ok", "ok"),
        w("a/schemata", "L3:99=3\n", "EINVAL", "ok"),
        w("a/schemata", "L3:-1=3\n", "EINVAL", "Missing '=' or non-numeric domain"),
    ],
    "masks": [
        w("a/schemata", "L3:0=xyz\n", "EINVAL", "Non-hex character in the mask xyz"),
        w("a/schemata", "L3:0=\n", "EINVAL", "Non-hex character in the mask"),
        w("a/schemata", "L3:0=1000\n", "EINVAL", "Mask out of range"),
        w("a/schemata", "L3:0=1fffffffffffffffff\n", "EINVAL", "Non-hex character in the mask 1fffffffffffffffff"),
        w("a/schemata", "L3:0=3\nL3:0=3\n", "EINVAL", "Duplicate domain 0"),
        w("a/schemata", "L3:0=3;0=3\n", "EINVAL", "Duplicate domain 0"),
    ],
    "nothing of a bad write is applied": [
        w("a/schemata", "L3:0=f;1=f\n", "ok", "ok"),
        w("a/schemata", "L3:0=3\nMB:0=9999\n", "EINVAL"),
        w("a/schemata", "L3:0=3;1=xyz\n", "EINVAL", None, ("a/L3 of 0", "f")),
        w("a/schemata", "L3:1=3\n", "ok", "ok", ("a/L3 of 0", "f")),
        Step("read", "a/schemata", reads=("a/L3 of 1", "3")),
    ],
    "bandwidth": [
        w("a/schemata", "MB:0=abc\n", "EINVAL", "Invalid MB value abc"),
        w("a/schemata", "MB:0=0x20\n", "EINVAL", "Invalid MB value 0x20"),
        w("a/schemata", "MB:0=-20\n", "EINVAL", "Invalid MB value -20"),
        w("a/schemata", "MB:0=\n", "EINVAL", "Invalid MB value"),
        w("a/schemata", "MB:0=4294967296\n", "EINVAL", "Invalid MB value 4294967296"),
    ],
    "modes": [
        w("a/mode", "exclusive\n", "EINVAL", "Schemata overlaps"),
        w("a/mode", "bogus\n", "EINVAL", "Unknown or unsupported mode"),
        w("a/mode", "pseudo-locksetup\n", "EINVAL", "Pseudo-locking not supported"),
        w("a/mode", "shareable\n", "ok", "ok"),
        w("a/mode", "shareable", "EINVAL", "ok"),
        w("schemata", "L3:{all=3f}\n", "ok"),
        w("a/schemata", "L3:{all=c0}\n", "ok"),
        w("b/schemata", "L3:{all=300}\n", "ok"),
        w("a/mode", "exclusive\n", "ok", "ok", ("a/mode", "exclusive")),
        w("b/schemata", "L3:0=180\n", "EINVAL", "Overlaps with exclusive group"),
        w("schemata", "L3:0=7f\n", "EINVAL", "Overlaps with exclusive group"),
        w("a/schemata", "L3:0=1c0\n", "EINVAL", "Overlaps with other group"),
        w("a/schemata", "L3:0=800\n", "EINVAL", "Overlaps with other group"),
        w("a/schemata", "L3:0=40\n", "ok", "ok"),
        Step("mkdir", "c", reads=("c/L3 of 0", "3f")),
        w("c/mode", "exclusive\n", "EINVAL", "Schemata overlaps"),
        w("a/mode", "shareable\n", "ok"),
        w("schemata", "L3:{all=fff}\n", "ok"),
        Step("rmdir", "c"),
    ],
    "a new group has the lowest run of what is shared or free": [
        w("schemata", "L3:{all=c}\n", "ok"),
        w("a/schemata", "L3:{all=f0}\n", "ok"),
        w("b/schemata", "L3:{all=c00}\n", "ok"),
        w("a/mode", "exclusive\n", "ok", "ok"),
        Step("mkdir", "c", reads=("c/L3 of 0", "f")),
        w("a/mode", "shareable\n", "ok", "ok"),
        Step("rmdir", "c"),
        w("schemata", "L3:{all=fff}\n", "ok"),
        Step("mkdir", "c", reads=("c/L3 of 0", "fff")),
        Step("rmdir", "c"),
    ],
    "directories": [
        Step("mkdir", "a", result="EEXIST"),
        Step("mkdir", "x\ny", result="EINVAL"),
        Step("mkdir", "info/x", result="EPERM"),
        Step("mkdir", "a/x", result="EPERM"),
        Step("mkdir", "mon_data/x", result="EPERM"),
        Step("mkdir", "a/mon_groups/m", result="ok"),
        Step("mkdir", "a/mon_groups/m", result="EEXIST"),
        Step("mkdir", "a/mon_groups/m/x", result="EPERM"),
        Step("rmdir", "a/mon_groups", result="EPERM"),
        Step("rmdir", "info", result="EPERM"),
        Step("rmdir", "nobody", result="ENOENT"),
        Step("rename", "a", "z", result="EPERM"),
        Step("rename", "a/mon_groups/m", "b/mon_groups/n", result="ok", status="ok"),
        Step("rename", "b/mon_groups/n", "b/mon_groups/o", result="ok", status="ok"),
        Step("rename", "b/mon_groups/o", "b/o", result="EPERM"),
        Step("rmdir", "b/mon_groups/o", result="ok"),
    ],
    "tasks": [
        w("a/tasks", "{me}\n", "ok", "ok", ("a/tasks", "{me}")),
        w("a/tasks", "0x7fffffff\n", "ESRCH", "No task 2147483647\nError while processing task 2147483647"),
        w("a/tasks", "-1\n", "EINVAL", "Invalid pid -1"),
        w("a/tasks", "x\n", "EINVAL", "Task list parsing error pid x"),
        w("a/tasks", "1 2\n", "EINVAL", "Task list parsing error pid 1 2"),
        w("b/tasks", "{me},2147483647\n", "ESRCH", None, ("b/tasks", "{me}")),
        w("a/tasks", "{me}\nx\n", "EINVAL", "Task list parsing error pid {me}\nx"),
        w("a/tasks", "{me},\n", "ok", "ok", ("a/tasks", "{me}")),
        Step("mkdir", "a/mon_groups/m"),
        w("a/mon_groups/m/tasks", "{me}", "ok", "ok", ("a/mon_groups/m/tasks", "{me}")),
        Step("read", "a/tasks", reads=("a/tasks", "{me}")),
        w("b/tasks", "{me}\n", "ok", "ok", ("a/tasks", "")),
        w("a/mon_groups/m/tasks", "{me}\n", "EINVAL",
          "Can't move task to different control group\nError while processing task {me}"),
        w("a/tasks", "{me}\n", "ok"),
        w("a/mon_groups/m/tasks", "{me}\n", "ok"),
        Step("rename", "a/mon_groups/m", "b/mon_groups/m", reads=("b/tasks", "{me}")),
        Step("rmdir", "b/mon_groups/m", reads=("b/tasks", "{me}")),
        Step("rmdir", "b", reads=("b/tasks", "ENOENT")),
        w("a/tasks", "{me}\n", "ok", "ok"),
        w("tasks", "0\n", "ok", "ok"),
        Step("mkdir", "b"),
    ],
    "cpus": [
        w("a/cpus_list", "0-3\n", "ok", None, ("cpus_list", "4-7")),
        Step("read", "a/cpus", reads=("a/cpus", "0f")),
        w("a/cpus", "3\n", "ok", None, ("a/cpus_list", "0-1")),
        w("b/cpus_list", "1-2\n", "ok", None, ("a/cpus_list", "0")),
        w("a/cpus_list", "x\n", "EINVAL"),
        w("a/cpus_list", "99\n", "ERANGE"),
        w("a/cpus", "zz\n", "EINVAL"),
        w("cpus_list", "5-7\n", "EINVAL"),
        Step("mkdir", "b/mon_groups/m"),
        w("b/mon_groups/m/cpus_list", "7\n", "EINVAL"),
        w("b/mon_groups/m/cpus_list", "1\n", "ok"),
        Step("rename", "b/mon_groups/m", "a/mon_groups/m", result="EPERM",
             status="Cannot move a MON group that monitors CPUs"),
        w("b/cpus_list", "2\n", "ok", None, ("b/mon_groups/m/cpus_list", "")),
        w("a/cpus_list", "\n", "ok", None, ("cpus_list", "0-1,3-7")),
        Step("rmdir", "b", reads=("cpus_list", "0-7")),
        Step("mkdir", "b"),
    ],
    "size and usage": [
        w("a/schemata", "L3:0=f\n", "ok", None, ("a/size of L3 0", str(4 * (16777216 // 12)))),
        Step("read", "info/L3/bit_usage", reads=("first of info/L3/bit_usage", "0=XSSSSSSSSSSS")),
    ],
}  # fmt: skip

INTEL: dict[str, list[Step]] = {
    "intel masks": [
        w("a/schemata", "L3:0=0\n", "EINVAL", "Mask out of range"),
        w("a/schemata", "L3:0=5\n", "EINVAL", "The mask 5 has non-consecutive 1-bits"),
        w("a/schemata", "L3:0=801\n", "EINVAL", "The mask 801 has non-consecutive 1-bits"),
        w("a/schemata", "L3:0=00800\n", "ok", "ok"),
    ],
    "intel bandwidth": [
        w("a/schemata", "MB:0=9\n", "EINVAL", "MB value 9 out of range [10,100]"),
        w("a/schemata", "MB:0=101\n", "EINVAL", "MB value 101 out of range [10,100]"),
        w("a/schemata", "MB:0=15\n", "ok", "ok", ("a/schemata", "MB:0= 20;1=100\nL3:0=fff;1=fff")),
        w("a/schemata", "MB:0=91;1=10\n", "ok", "ok", ("a/schemata", "MB:0=100;1= 10\nL3:0=fff;1=fff")),
    ],
    "intel runs out of CLOSIDs": [
        *[Step("mkdir", f"g{i}") for i in range(5)],
        w("a/mode", "shareable\n", "ok"),
        w("a/schemata", "L3:0=1\n", "ok", "ok"),
        Step("mkdir", "g5", result="ENOSPC", status="Out of CLOSIDs"),
        *[Step("rmdir", f"g{i}") for i in range(5)],
    ],
}
AMD: dict[str, list[Step]] = {
    "amd masks": [
        w("a/schemata", "L3:0=0\n", "ok", "ok", ("a/L3 of 0", "0")),
        w("a/schemata", "L3:0=a05\n", "ok", "ok", ("a/L3 of 0", "a05")),
    ],
    "amd bandwidth": [
        w("a/schemata", "MB:0=0\n", "ok", "ok"),
        w("a/schemata", "MB:0=2049\n", "EINVAL", "MB value 2049 out of range [0,2048]"),
        w("a/schemata", "MB:0=15\n", "ok", "ok", ("first of a/schemata", "MB:0=  15")),
    ],
    "amd runs out of CLOSIDs": [
        *[Step("mkdir", f"g{i}") for i in range(13)],
        w("a/schemata", "L3:0=1\n", "ok", "ok"),
        Step("mkdir", "g13", result="ENOSPC", status="Out of CLOSIDs"),
        *[Step("rmdir", f"g{i}") for i in range(13)],
    ],
}


def vectors(*, amd: bool) -> dict[str, list[Step]]:
    """Return the whole table of one vendor."""
    return BOTH | (AMD if amd else INTEL)


class Player:
    """Plays steps on any tree and says where it differs from the table."""

    def __init__(self, files: Files, root: str, me: int) -> None:
        self.files, self.root, self.me = files, root, str(me)
        self.fd = files.open(root, DIRECTORY)
        self.domains = [int(part.split("=")[0]) for part in self.line("schemata", "L3")]

    def text(self, path: str) -> str:
        fd = self.files.open(path, os.O_RDONLY, dir_fd=self.fd)
        try:
            return self.files.pread(fd, 1 << 16, 0).decode()
        finally:
            self.files.close(fd)

    def line(self, path: str, name: str) -> list[str]:
        found = next(x for x in self.text(path).splitlines() if x.strip().startswith(name + ":"))
        return found.partition(":")[2].split(";")

    def seen(self, what: str) -> str:
        """Return a whole file, "FILE/L3 of DOMAIN", "DIR/size of L3 DOMAIN", or "first of FILE" (up to ';')."""
        try:
            if " of L3 " in what:
                path, _, domain = what.partition(" of L3 ")
                return self.line(path, "L3")[self.domains.index(int(domain))].partition("=")[2]
            if "/L3 of " in what:
                path, _, domain = what.partition("/L3 of ")
                found = self.line(f"{path}/schemata", "L3")[self.domains.index(int(domain))]
                return f"{int(found.partition('=')[2], 16):x}"
            if what.startswith("first of "):
                return self.text(what.removeprefix("first of ")).partition(";")[0]
            return self.text(what).removesuffix("\n")
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def fill(self, text: str) -> str:
        while "{all=" in text:
            before, _, rest = text.partition("{all=")
            value, _, after = rest.partition("}")
            text = before + ";".join(f"{d}={value}" for d in self.domains) + after
        return text.replace("{me}", self.me)

    def call(self, step: Step) -> str:
        files = self.files
        try:
            if step.op == "write":
                fd = files.open(step.path, os.O_WRONLY, dir_fd=self.fd)
                try:
                    files.pwrite(fd, self.fill(step.data).encode(), 0)
                finally:
                    files.close(fd)
            elif step.op == "mkdir":
                files.mkdir(step.path, dir_fd=self.fd)
            elif step.op == "rmdir":
                files.rmdir(step.path, dir_fd=self.fd)
            elif step.op == "rename":
                files.rename(step.path, step.data, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"

    def differences(self, steps: list[Step]) -> list[str]:
        """Play ``steps`` with fresh groups a and b; return one line for each answer that is not the table's."""
        out: list[str] = []
        full = self.text("schemata")
        for name in ("a", "b"):
            self.files.mkdir(name, dir_fd=self.fd)
        for i, step in enumerate(steps):
            checks = [("result", step.result, self.call(step))]
            if step.status is not None:
                checks.append(("status", self.fill(step.status), self.text("info/last_cmd_status").strip()))
            if step.reads is not None:
                checks.append((step.reads[0], self.fill(step.reads[1]), self.seen(step.reads[0])))
            out += [
                f"step {i} {step.op} {step.path} {step.data!r}: {what}: the table says {said!r}, found {found!r}"
                for what, said, found in checks
                if said != found
            ]
        for name in ("a", "b"):
            self.files.rmdir(name, dir_fd=self.fd)
        for mine in ("tasks", "schemata"):
            self.call(Step("write", mine, f"{self.me}\n" if mine == "tasks" else full))
        return out

    def close(self) -> None:
        self.files.close(self.fd)
