"""The sweeper: every worker looks, twice a second, for dirty shards that nobody has been rung for.

It needs no beat process. It runs in the worker's own event loop, so it touches Redis only, with short time-outs; what
takes longer becomes a task. The dirty set is only an index of the truth, so watermarks and logs are compared too.

A worker drains its host's spool: its web processes may all have gone.

In a process of its own, so that neither the worker's event loop nor its fork is burdened by databases and files.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from celery import bootsteps

from pipeline import clock
from pipeline.config.settings import Settings, load
from pipeline.config.topology import Topology
from pipeline.oplog.appends import scopes_of
from pipeline.oplog.doorbell import Bell, queue_of
from pipeline.oplog.redis.log import RedisLog
from pipeline.spool.store import Spool

logger = logging.getLogger("pipeline.sweeper")

SWEEP_S = 0.5
#: A bucket that has been due for so long was forgotten by its bell, ms.
DUE_MS = 700
#: Chores of the whole deployment, done by whichever worker comes first: seconds between them.
RECONCILE_S, TRIM_S = 30, 10
#: The same for a look whether Redis is still the server that gave out the epochs, ms.
LINEAGE_MS = 1000
#: How long an epoch may wait for a worker to raise it, s; the look comes again before.
_RAISE_S = 30
#: From this share of Redis's memory on nothing more is let in; the rest is for draining and for the broker.
FULL_SHARE = 0.70


class Sweeper(bootsteps.StartStopStep):
    """A bootstep of the worker."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any):
        super().__init__(parent, **options)
        self._timer: Any = None
        self._sweep: Sweep | None = None

    def start(self, parent: Any) -> None:
        """Begin to sweep, once a worker is up."""
        self._sweep = Sweep(load(), parent.app)
        self._timer = parent.timer.call_repeatedly(SWEEP_S, self._sweep.once)

    def stop(self, parent: Any) -> None:
        """End sweeping."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sweep is not None:
            self._sweep.close()


class Sweep:
    """What is done at each turn."""

    def __init__(self, settings: Settings, app: Any):
        redis = settings.redis
        self._shards, self._app = Topology(settings).shards, app
        self._scopes = scopes_of(self._shards)
        self._log = RedisLog(redis.url, prefix=redis.prefix, read_s=1.0)
        self._bell = Bell(redis.broker_url, redis.prefix, self._shards)
        self._spool = HostDrain(settings)

    def once(self) -> None:
        """Ring for what was forgotten, and hand out the chores that are due. Never raises."""
        try:
            for shard in self._shards:
                ring, dirty = self._log.sweep(shard, due_ms=DUE_MS)
                if ring:
                    self._bell.ring_now(shard, dirty)
                self._chore("reconcile", shard, RECONCILE_S)
                self._chore("trim", shard, TRIM_S)
            self._spool.look()
            if self._log.take_lease("lineage", LINEAGE_MS):
                self._look_at_epochs()
            if self._log.take_lease("memory", 1000):
                share = self._log.memory_share()
                self._log.set_full(f"Redis uses {share:.0%} of its memory" if share > FULL_SHARE else None)
        except Exception as error:  # the outermost loop: a turn may fail, sweeping goes on
            logger.warning("sweep failed: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
        self._spool.close()

    def _look_at_epochs(self) -> None:
        """Let epochs be raised that were given out on another server: a request may not have the time to."""
        for scope in self._scopes.values():
            epoch, current, _ = self._log.epoch(scope.name)
            if not epoch or not current:
                self._order("raise_epoch", scope.shards[0], _RAISE_S, scope=scope.name)

    def _chore(self, name: str, shard: str, every_s: int) -> None:
        if self._log.take_lease(f"{name}:{shard}", every_s * 1000):
            self._order(name, shard, every_s, shard=shard)

    def _order(self, name: str, to: str, within_s: int, **what: str) -> None:
        """Send a task to the workers of shard *to*, to be begun within a time or not at all."""
        self._app.send_task(f"pipeline.{name}", kwargs=what, queue=queue_of(to), expires=within_s, ignore_result=True)


#: Between two drains, s: while ops wait, and to look after those that are kept.
WAITING_S, KEPT_S = 2.0, 30.0
#: What one drain may take, s; the next one goes on.
DRAIN_S = 60


class HostDrain:
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
            logger.info("draining the spool %s", self._spool.path)
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
