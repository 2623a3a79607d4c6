"""Measure whether a worker's memory stays flat over a million ops."""

from __future__ import annotations

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import DRAIN_S
from benchmarks.peers import ours
from benchmarks.processes import rss_bytes, running
from benchmarks.rows import take
from benchmarks.table import Table
from benchmarks.target import Target

#: The ops come in ten chunks of half the run's rows: 1,000,000 ops in a full run.
CHUNKS, SHARE = 10, 0.5
#: Imports, caches and connections are complete after this many chunks.
WARM_CHUNKS = 2


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the growth of the worker's resident memory, from 20 % of the ops to all."""
    purchase, chunk = ours.prepare(target), max(1000, round(rows * SHARE))
    samples = []
    with running(target, ours.worker_command()) as (worker,):
        for _ in range(CHUNKS):
            table.empty()
            pipeline.enqueue_bulk_insert(purchase, take(chunk))
            table.drained_at(chunk, DRAIN_S)
            samples.append(rss_bytes(worker.pid) / 2**20)
    table.empty()
    first, last = samples[WARM_CHUNKS - 1], samples[-1]
    detail = f"{first:.0f} MiB after {WARM_CHUNKS * chunk:,} ops, {last:.0f} MiB after {CHUNKS * chunk:,}; parent + 2"
    return [Figure("worker memory growth", last / first, "×", detail, tuple(samples))]
