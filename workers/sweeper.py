"""Sweep twice a second in every worker: ring for dirty shards, start chores, drain this host's spool.

A dirty shard is rung for if its doorbell was lost. The dirty set is only an index of the truth, so a chore compares
watermarks and logs too. No beat process is needed. The sweeper runs in the worker's own event loop, so it calls Redis
only, with short time-outs; what takes longer becomes a task.

A worker drains its host's spool, as all web processes of the host may be gone. The drain is a process of its own:
databases and files burden neither the event loop nor the worker's forks.
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
from pipeline.oplog.waits import ALIVE, ALIVE_MS, ALIVE_TOKEN
from pipeline.spool.store import Spool

logger = logging.getLogger("pipeline.sweeper")

#: The time between two turns, s.
SWEEP_S = 0.5
#: A bucket that has been due for so long lost its doorbell, ms.
DUE_MS = 700
#: The time between two chores of the whole deployment, s; whichever worker comes first starts one.
RECONCILE_S, TRIM_S = 30, 10
#: The time between two checks whether Redis is the server that gave out the epochs, ms.
LINEAGE_MS = 1000
#: How long a task that raises an epoch may wait for a worker, s; the check is repeated before.
_RAISE_S = 30
#: The time between two signs of life, s: shorter than one lasts, `ALIVE_MS`.
ALIVE_EVERY_S = 2.0
#: The time between two drains, s: while ops wait, and while sent ops are only kept.
WAITING_S, KEPT_S = 2.0, 30.0
#: How long one drain may take, s; the next one goes on.
DRAIN_S = 60


class Sweeper(bootsteps.StartStopStep):
    """A bootstep of the worker that sweeps on Celery's timer."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any):
        super().__init__(parent, **options)
        self._timer: Any = None
        self._sweep: Sweep | None = None

    def start(self, parent: Any) -> None:
        """Begin to sweep, once a worker is up.

        Args:
            parent: Celery's worker.
        """
        self._sweep = Sweep(load(), parent.app)
        self._timer = parent.timer.call_repeatedly(SWEEP_S, self._sweep.once)

    def stop(self, parent: Any) -> None:
        """End sweeping.

        Args:
            parent: Celery's worker.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._sweep is not None:
            self._sweep.close()


class Sweep:
    """One worker's turns."""

    def __init__(self, settings: Settings, app: Any):
        redis = settings.redis
        self._shards, self._app = Topology(settings).shards, app
        self._scopes = scopes_of(self._shards)
        self._log = RedisLog(redis.url, prefix=redis.prefix, read_s=1.0)
        self._bell = Bell(redis.broker_url, redis.prefix, self._shards)
        self._spool = HostDrain(settings)
        self._alive_s = 0.0

    def once(self) -> None:
        """Ring for what was lost, and start the chores that are due. Never raises."""
        try:
            self._say_alive()
            for shard in self._shards:
                ring, dirty = self._log.sweep(shard, due_ms=DUE_MS)
                if ring:
                    self._bell.ring_now(shard, dirty)
                self._chore("reconcile", shard, RECONCILE_S)
                self._chore("trim", shard, TRIM_S)
            self._spool.start_if_due()
            if self._log.take_lease("lineage", LINEAGE_MS):
                self._raise_epochs()
        except Exception as error:  # the outermost loop: sweeping goes on after a failed turn
            logger.warning("sweep failed: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Close the connections."""
        self._log.close()
        self._spool.close()

    def _say_alive(self) -> None:
        """Let others know, every other second, which shards have a worker: `pipeline why` says where none runs."""
        if clock.mono_s() < self._alive_s:
            return
        self._alive_s = clock.mono_s() + ALIVE_EVERY_S
        queues = self._app.amqp.queues.consume_from
        for shard in self._shards:
            if queue_of(shard) in queues:
                self._log.hold_lease(ALIVE.format(shard), ALIVE_TOKEN, ALIVE_MS)

    def _raise_epochs(self) -> None:
        """Send a task for each epoch that another server gave out: a request may lack the time to raise it."""
        for scope in self._scopes.values():
            epoch, current, _ = self._log.epoch(scope.name)
            if not epoch or not current:
                self._send("raise_epoch", scope.shards[0], _RAISE_S, scope=scope.name)

    def _chore(self, name: str, shard: str, every_s: int) -> None:
        if self._log.take_lease(f"{name}:{shard}", every_s * 1000):
            self._send(name, shard, every_s, shard=shard)

    def _send(self, name: str, to: str, within_s: int, **what: str) -> None:
        """Send a task to the workers of shard *to*; it starts within *within_s* seconds or never."""
        self._app.send_task(f"pipeline.{name}", kwargs=what, queue=queue_of(to), expires=within_s, ignore_result=True)


class HostDrain:
    """Runs `pipeline spool drain` when there is something to drain on this host."""

    def __init__(self, settings: Settings):
        spool = settings.spool
        self._spool = Spool(Path(spool.path), spool.max_mb * 1_000_000) if spool.enabled else None
        self._source = settings.source
        self._child: subprocess.Popen[bytes] | None = None
        self._next_s = 0.0
        self._next_kept_s = 0.0

    def start_if_due(self) -> None:
        """Start a drain if one is due. Call this while Redis answers."""
        if self._spool is None or clock.mono_s() < self._next_s:
            return
        self._next_s = clock.mono_s() + WAITING_S
        if self._child is not None and self._child.poll() is None:
            return
        if self._spool.waiting() or self._keeps_ops(self._spool):
            logger.info("draining the spool %s", self._spool.path)
            command = [sys.executable, "-m", "pipeline", "spool", "drain", "--timeout", str(DRAIN_S)]
            environment = {**os.environ, "PIPELINE_CONFIG": self._source}
            self._child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """End the drain, wherever it is; the next one goes on."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(5)

    def _keeps_ops(self, spool: Spool) -> bool:
        """Return whether sent ops are kept; checked every `KEPT_S`."""
        if clock.mono_s() < self._next_kept_s:
            return False
        self._next_kept_s = clock.mono_s() + KEPT_S
        return spool.file.there and bool(spool.pairs())
