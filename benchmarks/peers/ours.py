"""Run this pipeline: enqueued in bulk or one by one, applied by `celery -A workers worker -c 2`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pydal import DAL

import pipeline
from benchmarks.peer import Enqueue
from benchmarks.processes import ROOT, running
from benchmarks.rows import PURCHASE, TABLE, Row, Shape
from benchmarks.target import Target

MIGRATE_S = 60
DRAIN_S = 120


def bulk_of(shape: Shape) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer that enqueues all rows in one call."""

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        table = prepare(target, shape)
        with running(target, worker_command()):
            yield lambda rows: _enqueue_bulk(table, rows)

    return open_peer


bulk = bulk_of(PURCHASE)


@contextmanager
def one_by_one(target: Target) -> Iterator[Enqueue]:
    """Yield a function that enqueues row by row, as web requests do."""
    purchase = prepare(target)
    with running(target, worker_command()):
        yield lambda rows: _enqueue_each(purchase, rows)


def prepare(target: Target, shape: Shape = PURCHASE) -> Any:
    """Configure this process, publish the table, migrate the shards, and return the table."""
    pipeline.configure(target.config)
    db = DAL(target.primaries[0], migrate=False, bigint_id=True)
    table = shape.define(db)
    pipeline.define_tables(db)
    migrate(target)
    return table


def migrate(target: Target) -> None:
    """Create on the shards what is published and lacking."""
    subprocess.run(
        [sys.executable, "-m", "pipeline", "migrate"],
        cwd=ROOT,
        env=target.environment(),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=MIGRATE_S,
    )


def worker_command(concurrency: int = 2, node: str = "bench") -> list[str]:
    """Return the ordinary worker command of the README."""
    app = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
    return [*app, "-c", str(concurrency), "-n", f"{node}@%h", "-l", "ERROR"]


def drain(target: Target) -> None:
    """Apply everything that is queued: what a probe left behind must not disturb the next."""
    with running(target, worker_command()):
        pipeline.barrier(TABLE, timeout_s=DRAIN_S)


def _enqueue_bulk(table: Any, rows: Sequence[Row]) -> None:
    pipeline.enqueue_bulk_insert(table, rows)


def _enqueue_each(purchase: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        pipeline.enqueue_insert(purchase, **row)
