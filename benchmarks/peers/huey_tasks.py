"""Run the peer with one Huey task per write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.peer import Enqueue
from benchmarks.processes import running
from benchmarks.rows import Row
from benchmarks.target import HUEY_DATABASE, Target


def workers(kind: str, count: int) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer with *count* workers of a *kind*, `process` or `thread`."""
    consumer = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey_app.huey"]
    # `-n`: no periodic tasks to look for; `-g TERM`: SIGTERM stops it gracefully.
    command = [*consumer, "-k", kind, "-w", str(count), "-n", "-q", "-g", "TERM"]

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        target.redis(HUEY_DATABASE).flushdb()
        with running(target, command):
            yield _enqueue

    return open_peer


def _enqueue(rows: Sequence[Row]) -> None:
    from benchmarks.peers.huey_app import insert_purchase  # the module reads PIPELINE_CONFIG

    for row in rows:
        insert_purchase(row)
