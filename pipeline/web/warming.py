"""Warm a web process up, once: import what the first ring needs, and look for no garbage among what stays for good.

web2py collects all garbage at every hundredth request, and Python does it now and then: each time every object of the
process is looked at, the modules' own too, while all its threads stand still. A request in a hundred waits for that. Of
what is frozen nothing is looked at; it is freed as ever when nobody refers to it, unless in a cycle.
"""

from __future__ import annotations

import gc
import os
import threading

from pipeline.client import Pipeline
from pipeline.wait_budget import threads_run

_warmed_in = 0


def warm_up(client: Pipeline) -> None:
    """Begin to warm this process up, unless that has been done; costs the caller nothing."""
    global _warmed_in
    if _warmed_in == os.getpid():
        return
    _warmed_in = os.getpid()  # two threads at once do no harm
    if threads_run():
        threading.Thread(target=_warm, args=(client,), name="pipeline-warming", daemon=True).start()
    else:
        gc.freeze()


def _warm(client: Pipeline) -> None:
    client.bell.prepare()
    gc.collect()
    gc.freeze()
