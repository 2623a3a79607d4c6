"""For crash tests: `PIPELINE_CRASH_AT=commit:0.1` kills the process with SIGKILL before one in ten commits."""

from __future__ import annotations

import os
import random
import signal

_at, _, _share = os.environ.get("PIPELINE_CRASH_AT", "").partition(":")


def step(name: str) -> None:
    """Be killed here, perhaps."""
    if name == _at and random.random() < float(_share or 1):
        os.kill(os.getpid(), signal.SIGKILL)
