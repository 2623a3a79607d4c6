"""Run the prober in a thread of each worker; the worker that holds the lease probes the nodes.

The thread belongs to the worker's main process, which runs no tasks. The pool forks before the thread starts, and a
child that is forked later has none of the thread's connections.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Any

from celery import bootsteps

from pipeline.config.settings import Settings, load
from pipeline.oplog.doorbell import queue_of
from pipeline.oplog.redis.log import RedisLog
from pipeline.reads.health.prober import PROBE_EVERY_S, Duty, Prober
from pipeline.shard.nodes import Nodes

#: How long a stopping worker waits for the current probes, s.
STOP_S = 3.0
#: How long Redis may take to answer the prober, s: less than the prober's lease.
READ_S = 0.5
logger = logging.getLogger("pipeline.prober")


class ProberStep(bootsteps.StartStopStep):
    """A bootstep of the worker that starts and stops the prober's thread."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any):
        super().__init__(parent, **options)
        self._watch: Watch | None = None

    def start(self, parent: Any) -> None:
        """Start the thread, once the pool has forked.

        Args:
            parent: Celery's worker.
        """
        self._watch = Watch(load(), parent.app)
        self._watch.start()

    def stop(self, parent: Any) -> None:
        """Stop the thread, so that another worker takes the lease.

        Args:
            parent: Celery's worker.
        """
        if self._watch is not None:
            self._watch.stop()

    terminate = stop


class Watch:
    """The prober's thread."""

    def __init__(self, settings: Settings, app: Any):
        self._settings, self._app = settings, app
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pipeline-prober", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current probes."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        redis = self._settings.redis
        log = RedisLog(redis.url, prefix=redis.prefix, read_s=READ_S)
        nodes = Nodes(self._settings)

        def engage(out: Collection[str]) -> Prober:
            return Prober(nodes, self._settings.shards, log, out, self._reconcile)

        duty = Duty(log, engage)
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            try:
                pause_s = duty.turn()
            except Exception:  # the outermost loop: the thread goes on after any error
                logger.exception("a probe failed")
                pause_s = PROBE_EVERY_S
        duty.end()
        log.close()

    def _reconcile(self, shard: str) -> None:
        """Compare the new primary's watermarks with the logs at once: it may lack what the old one had."""
        self._app.send_task("pipeline.reconcile", kwargs={"shard": shard}, queue=queue_of(shard), expires=30)
