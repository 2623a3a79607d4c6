"""Measure how fast one process enqueues in bulk without workers, and what a queued op costs Redis."""

from __future__ import annotations

import time
from typing import Any

import pipeline
from benchmarks.figure import Figure, median_figure
from benchmarks.log_memory import log_size, payload_bytes
from benchmarks.peer import WARM_ROWS
from benchmarks.peers import ours
from benchmarks.rows import Row, take
from benchmarks.table import Table
from benchmarks.target import Target

RUNS = 3
#: Part of the run's rows per run of this probe: 100,000 ops in a full run.
SHARE = 0.5


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return ops/s of bulk enqueue and the bytes per queued op beyond its payload."""
    purchase, log = ours.prepare(target), target.redis()
    sent = list(take(max(WARM_ROWS, round(rows * SHARE))))
    pipeline.enqueue_bulk_insert(purchase, sent[:WARM_ROWS])

    before = log_size(log)
    rates = [_rate(purchase, sent) for _ in range(RUNS)]
    after = log_size(log)
    payload = payload_bytes(log)

    queued = RUNS * len(sent)
    beyond = (after.memory_bytes - before.memory_bytes - (after.entries - before.entries) * payload) / queued
    ours.drain(target)
    table.empty()
    return [
        median_figure("bulk enqueue", rates, "ops/s", f"one process, no worker, {RUNS} × {len(sent):,} ops"),
        Figure(
            "Redis beyond payload", beyond, "bytes/op", f"{queued:,} queued ops, stored payload {payload:.0f} bytes"
        ),
    ]


def _rate(purchase: Any, sent: list[Row]) -> float:
    started = time.perf_counter()
    pipeline.enqueue_bulk_insert(purchase, sent)
    return len(sent) / (time.perf_counter() - started)
