"""What the whole test tree shares: hypothesis profiles and hosts to partition."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/hosts.py, for every folder below

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background: children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # begun under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
