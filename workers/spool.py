"""A worker drains its host's spool: web processes may run no threads, or may all have gone.

In a process of its own, so that neither the worker's event loop nor its fork is burdened by databases and files.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from pipeline import clock
from pipeline.config.settings import Settings
from pipeline.spool.store import Spool

#: Between two drains, s: while ops wait, and to look after those that are kept.
WAITING_S, KEPT_S = 2.0, 30.0
#: What one drain may take, s; the next one goes on.
DRAIN_S = 60
_log = logging.getLogger("pipeline.sweeper")


class SpoolWatch:
    """Starts `pipeline spool drain` when there is something to drain on this host."""

    def __init__(self, settings: Settings):
        spool = settings.spool
        self._spool = Spool(Path(spool.path), spool.max_mb * 1_000_000) if spool.enabled else None
        self._source = settings.source
        self._child: subprocess.Popen[bytes] | None = None
        self._next_s = 0.0
        self._tend_s = 0.0

    def look(self) -> None:
        """Start a drain if one is due. Called while Redis answers."""
        if self._spool is None or clock.mono_s() < self._next_s:
            return
        self._next_s = clock.mono_s() + WAITING_S
        if self._child is not None and self._child.poll() is None:
            return
        if self._spool.waiting() or (clock.mono_s() >= self._tend_s and self._keeps()):
            _log.info("draining the spool %s", self._spool.path)
            command = [sys.executable, "-m", "pipeline", "spool", "drain", "--timeout", str(DRAIN_S)]
            environment = {**os.environ, "PIPELINE_CONFIG": self._source}
            self._child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """End the drain, wherever it is: the next one goes on."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(5)

    def _keeps(self) -> bool:
        self._tend_s = clock.mono_s() + KEPT_S
        assert self._spool is not None
        return self._spool.file.there and bool(self._spool.pairs())
