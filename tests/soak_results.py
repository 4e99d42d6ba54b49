"""Where long runs leave their figures: tests/soak/results/NAME.json, with what somebody needs to judge them by.

``SOAK_SHARE=0.1 make soak`` runs a tenth of each; the file then says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from foreshare.runtime.bench import machine_facts

FOLDER = Path(__file__).parent / "soak" / "results"


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


COMMIT = _git("rev-parse", "HEAD")
"""Of the code that runs: as it was when it was loaded."""
CHANGED = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/tests/soak/results"))


def soak_ticks(full: int) -> int:
    """Return how many ticks of ``full`` to run."""
    return max(1, round(full * float(os.environ.get("SOAK_SHARE", "1"))))


def keep(name: str, test: str, full: int, figures: dict[str, Any]) -> None:
    """Write the figures of one long run; ``figures`` says how many ``ticks`` it had, ``full`` how many it should."""
    share = os.environ.get("SOAK_SHARE", "")
    doc = {
        "run": name,
        "full_length": figures["ticks"] >= full,
        "full_ticks": full,
        "command": f"{f'SOAK_SHARE={share} ' if share else ''}python -m pytest -m soak {test}",
        "figures": figures,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": COMMIT,
        "tree_changed_since": CHANGED,
        "machine": machine_facts(),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(doc, indent=1) + "\n", encoding="utf-8")
