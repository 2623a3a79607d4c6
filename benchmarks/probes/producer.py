"""Measure how fast one process enqueues in bulk without workers, and what a queued op costs Redis."""

from __future__ import annotations

import time
from typing import Any

import pipeline
from benchmarks.figure import Figure, median_figure
from benchmarks.log_memory import log_size
from benchmarks.peer import WARM_ROWS
from benchmarks.peers import ours
from benchmarks.rows import Row, take
from benchmarks.table import Table
from benchmarks.target import Target

RUNS = 3
#: Part of the run's rows per run of this probe: 100,000 ops in a full run.
SHARE = 0.5


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return ops/s of bulk enqueue and the bytes of Redis per queued row beyond its values."""
    purchase, log = ours.prepare(target), target.redis()
    sent = list(take(max(WARM_ROWS, round(rows * SHARE))))
    pipeline.enqueue_bulk_insert(purchase, sent[:WARM_ROWS])

    before = log_size(log)
    rates = [_rate(purchase, sent) for _ in range(RUNS)]
    after = log_size(log)

    queued = RUNS * len(sent)
    entries = after.entries - before.entries
    memory = (after.memory_bytes - before.memory_bytes) / queued
    payload = (after.payload_bytes - before.payload_bytes) / queued
    values = (after.values_bytes - before.values_bytes) / queued
    ours.drain(target)
    table.empty()
    detail = f"{queued:,} queued rows in {entries:,} entries; values {values:.1f}, names and ids {payload - values:.2f}"
    return [
        median_figure("bulk enqueue", rates, "ops/s", f"one process, no worker, {RUNS} × {len(sent):,} ops"),
        Figure("Redis beyond values", memory - values, "bytes/row", detail),
    ]


def _rate(purchase: Any, sent: list[Row]) -> float:
    started = time.perf_counter()
    pipeline.enqueue_bulk_insert(purchase, sent)
    return len(sent) / (time.perf_counter() - started)
