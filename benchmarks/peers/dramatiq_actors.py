"""Run the peer with one Dramatiq message per write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.peer import Enqueue
from benchmarks.processes import running
from benchmarks.rows import Row
from benchmarks.target import DRAMATIQ_DATABASE, Target


def workers(processes: int, threads: int) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer with *processes* × *threads* workers."""
    size = ["--processes", str(processes), "--threads", str(threads)]
    command = [sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq_app", *size]

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        target.redis(DRAMATIQ_DATABASE).flushdb()
        with running(target, command):
            yield _enqueue

    return open_peer


def _enqueue(rows: Sequence[Row]) -> None:
    from benchmarks.peers.dramatiq_app import insert_purchase  # the module reads PIPELINE_CONFIG

    for row in rows:
        insert_purchase.send(row)
