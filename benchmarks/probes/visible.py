"""Measure how long after its enqueue a row is visible on the primary when the pipeline is idle."""

from __future__ import annotations

import time
from typing import Any

import pipeline
from benchmarks.figure import Figure, percentile_figures
from benchmarks.peer import WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.processes import running
from benchmarks.rows import Row, take
from benchmarks.table import Table
from benchmarks.target import Target

#: Part of the run's rows that is the number of ops: 200 in a full run.
SHARE = 0.001
#: Long enough for the workers to be idle again.
PAUSE_S = 0.03
#: Between two looks at the primary; it bounds the error.
LOOK_S = 0.0002
GIVE_UP_S = 30


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return p50 and p99 from the call of `enqueue_insert` until another connection sees the row."""
    purchase = ours.prepare(target)
    sent = list(take(max(50, round(rows * SHARE))))
    table.empty()
    with running(target, ours.worker_command()):
        pipeline.enqueue_bulk_insert(purchase, take(WARM_ROWS))
        table.drained_at(WARM_ROWS, WARM_S)
        times = [_visible_after(purchase, row, table) for row in sent]
    table.empty()
    return percentile_figures("visible", times, f"{len(sent):,} ops, one at a time, idle workers")


def _visible_after(purchase: Any, row: Row, table: Table) -> float:
    time.sleep(PAUSE_S)
    started = time.perf_counter()
    receipt = pipeline.enqueue_insert(purchase, **row)
    return seen_at(table, receipt.id) - started


def seen_at(table: Table, row_id: int) -> float:
    """Wait until the row is visible and return the moment.

    Raises:
        TimeoutError: the row did not come.
    """
    deadline = time.perf_counter() + GIVE_UP_S
    while not table.has(row_id):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"row {row_id} was not visible after {GIVE_UP_S} s")
        time.sleep(LOOK_S)
    return time.perf_counter()
