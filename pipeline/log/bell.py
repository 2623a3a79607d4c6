"""The bell: one Celery message says "this shard has work". A hint: a lost one costs two seconds at most, never an op.

Ringing takes about as long as three enqueues, so a thread does it, off the caller's path. uWSGI runs no threads unless
told to: there the caller rings by itself. A process that forked starts anew with its own thread and connections.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

from pipeline.log.broker import APPLY_TASK, broker_settings, queue_of
from pipeline.log.connection import connect

#: Rings of one process that come faster than this are one, s. Keeps a busy producer's own latency flat.
QUIET_S = 0.005
#: With this many messages waiting for a shard, another adds nothing; keeps the queue short while no worker is there.
ENOUGH = 8
_log = logging.getLogger("pipeline.bell")


class Bell:
    """Rings shards through Celery."""

    def __init__(self, broker_url: str, prefix: str, shards: Iterable[str]):
        self._broker_url, self._prefix, self._shards = broker_url, prefix, tuple(shards)
        self._pid = 0
        self._reset()

    def ring(self, shards: Iterable[str], ops: int = 1) -> None:
        """Ring soon; never raises, never waits."""
        if self._pid != os.getpid():
            self._reset()
        with self._changed:
            for shard in shards:
                self._wanted[shard] = self._wanted.get(shard, 0) + ops
            if threads_run():
                self._start()
                self._changed.notify()
                return
        self._ring_all()

    def ring_now(self, shard: str, ops: int) -> bool:
        """Send the message and return whether it was sent."""
        try:
            if self._broker().llen(f"{self._prefix}:celery:{queue_of(shard)}") >= ENOUGH:
                return True
            self._celery().send_task(
                APPLY_TASK,
                kwargs={"shard": shard, "ops": ops},
                kwargsrepr=repr({"shard": shard, "ops": ops}),
                argsrepr="()",
                queue=queue_of(shard),
            )
        except Exception as error:  # the broker may fail in many ways, and none may reach a web request
            _log.warning("ring failed shard=%s error=%s: %s", shard, type(error).__name__, error)
            return False
        return True

    def listened(self, timeout_s: float = 1.0) -> set[str] | None:
        """Ask the workers which shards they listen for; None if the broker does not answer."""
        try:
            replies = self._celery().control.inspect(timeout=timeout_s).active_queues() or {}
        except Exception as error:  # the broker may fail in many ways
            _log.debug("no answer from the broker: %s: %s", type(error).__name__, error)
            return None
        queues = {queue["name"] for listening in replies.values() for queue in listening or ()}
        return {shard for shard in self._shards if queue_of(shard) in queues}

    def flush(self, timeout_s: float = 0.5) -> None:
        """Wait until what was asked for has been rung; a script calls this by itself as it ends."""
        if self._pid == os.getpid():
            with self._changed:
                self._changed.wait_for(lambda: not self._wanted and not self._ringing, timeout_s)

    def close(self) -> None:
        """Flush, and stop the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        atexit.unregister(self.flush)
        if self._app is not None:
            self._app.close()
        if self._client is not None:
            self._client.close()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._wanted: dict[str, int] = {}
        self._ringing = self._closed = False
        self._thread: threading.Thread | None = None
        self._app: Any = None
        self._client: Any = None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pipeline-bell", daemon=True)
            self._thread.start()
            atexit.register(self.flush)

    def _run(self) -> None:
        changed = self._changed
        while not self._closed and self._changed is changed:
            with changed:
                changed.wait_for(lambda: self._wanted or self._closed)
            self._ring_all()
            with changed:
                changed.wait_for(lambda: self._closed, QUIET_S)

    def _ring_all(self) -> None:
        with self._changed:
            wanted, self._wanted, self._ringing = self._wanted, {}, True
        for shard, ops in wanted.items():
            self.ring_now(shard, ops)
        with self._changed:
            self._ringing = False
            self._changed.notify_all()

    def _celery(self) -> Any:
        if self._app is None:
            from celery import Celery  # imported on the first ring: 0.1 s that only producers pay

            app = Celery("pipeline-bell", set_as_current=False)
            app.conf.update(broker_settings(self._broker_url, self._prefix, self._shards))
            self._app = app
        return self._app

    def _broker(self) -> Any:
        if self._client is None:
            self._client = connect(self._broker_url, read_s=2.0, connect_s=1.0)
        return self._client


class SilentBell:
    """A bell that only notes who was rung, for tests and for draining in this process."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, shards: Iterable[str], ops: int = 1) -> None:
        """Note the shards."""
        self.rung.extend(shards)

    def ring_now(self, shard: str, ops: int) -> bool:
        """Note the shard."""
        self.rung.append(shard)
        return True

    def flush(self, timeout_s: float = 0.5) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def threads_run() -> bool:
    """Return False inside a uWSGI that was not started with --enable-threads."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is None or bool(getattr(uwsgi, "opt", {}).get("enable-threads"))
