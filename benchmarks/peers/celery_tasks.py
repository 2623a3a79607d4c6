"""Run the peer with one Celery task per write, prefork."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.peer import Enqueue
from benchmarks.processes import running
from benchmarks.rows import Row
from benchmarks.target import CELERY_DATABASE, Target

#: Messages per pipelined publish: kombu's `Producer.batch()` spares the peer a round trip per message.
PUBLISH_MESSAGES = 500


def workers(concurrency: int, nodes: int = 1) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer with *nodes* workers of *concurrency* prefork processes each."""

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        target.redis(CELERY_DATABASE).flushdb()
        with running(target, *(command(concurrency, node) for node in range(nodes))):
            yield _enqueue

    return open_peer


def _enqueue(rows: Sequence[Row]) -> None:
    from benchmarks.peers.celery_app import app, insert_purchase  # the module reads PIPELINE_CONFIG

    for first in range(0, len(rows), PUBLISH_MESSAGES):
        with app.producer_or_acquire() as producer, producer.batch():
            for row in rows[first : first + PUBLISH_MESSAGES]:
                insert_purchase.apply_async((row,), producer=producer)


def command(concurrency: int, node: int) -> list[str]:
    """Return the command of a worker."""
    flags = ["-n", f"peer{node}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    app = ["-A", "benchmarks.peers.celery_app"]
    return [sys.executable, "-m", "celery", *app, "worker", "-P", "prefork", "-c", str(concurrency), *flags]
