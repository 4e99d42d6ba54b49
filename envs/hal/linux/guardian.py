"""A process that puts the host back when the one that holds it is killed.

``foreshare run`` keeps a journal, and whoever comes next finds it. An environment in somebody's training script has no
next run, so a small process waits at the end of a pipe: when that closes without a word, it restores what was
remembered (:mod:`.restore`) and ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from foreshare.policies.errors import ForeshareError, HalError

from .restore import restore
from .roots import Roots

_DISMISS = "dismiss\n"
_PATIENCE_S = 30.0


class Guardian:
    """Watches over one host. :meth:`remember` is what a HAL's ``claim`` is given."""

    def __init__(self, roots: Roots) -> None:
        # A session of its own: what kills this process group, a Ctrl-C too, must not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, roots.cgroup, roots.sys, roots.proc],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def remember(self, doc: Mapping[str, object]) -> None:
        """Hand over what to put back; it is in the other process when this returns. Raises HalError."""
        pipe, back = self._process.stdin, self._process.stdout
        try:
            if pipe is None or back is None:
                raise BrokenPipeError
            pipe.write(json.dumps(doc) + "\n")
            pipe.flush()
            answer = back.readline()
        except OSError as error:
            raise HalError("watch over", "host", error.errno or 0, "the guardian process is gone") from error
        if answer != "ready\n":
            raise HalError("watch over", "host", 0, "the guardian process did not answer")

    def dismiss(self) -> None:
        """End it: the host was put back by other means. Doing it twice is fine."""
        pipe, back = self._process.stdin, self._process.stdout
        if pipe is None or back is None or pipe.closed:
            return
        try:
            pipe.write(_DISMISS)
            pipe.close()
        except BrokenPipeError:
            pass  # it has ended already, which is all that was asked for
        back.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _watch(roots: Roots) -> int:
    doc: Mapping[str, object] | None = None
    for line in sys.stdin:
        if line == _DISMISS:
            return 0
        doc = json.loads(line)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    if doc is None:
        return 0
    report = restore(doc, roots)
    for text in report.failed:
        sys.stderr.write(f"foreshare: not put back after a kill: {text}\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(_watch(Roots(cgroup=sys.argv[1], sys=sys.argv[2], proc=sys.argv[3])))
    except ForeshareError as error:
        sys.stderr.write(f"foreshare: not put back after a kill: {error}\n")
        sys.exit(1)
