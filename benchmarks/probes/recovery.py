"""Measure how long a bucket waits after its worker was killed, and after its doorbell was lost."""

from __future__ import annotations

import time
from typing import Any

import pipeline
from benchmarks.bell import losing_publishes, silence
from benchmarks.figure import Figure
from benchmarks.peer import WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.probes.visible import seen_at
from benchmarks.processes import kill_group, paused, running
from benchmarks.rows import take
from benchmarks.sockets import process_of_port
from benchmarks.table import Table
from benchmarks.target import Target

#: Part of the run's rows that goes to one bucket while its worker is killed: 100,000 in a full run.
KILL_SHARE = 0.5
LOST_BELLS = 5
LOOK_S = 0.002
GIVE_UP_S = 20
#: A bucket that is not drained by then has not recovered.
RECOVERED_S = 60


def measure_killed_worker(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the longest stall of one bucket after SIGKILL of the worker that was writing it; another one lives."""
    purchase, count = ours.prepare(target), max(1000, round(rows * KILL_SHARE))
    one_bucket = [{**row, "customer": 7} for row in take(count)]
    table.empty()
    with running(target, ours.worker_command(1, "a"), ours.worker_command(1, "b")) as workers:
        pipeline.enqueue_bulk_insert(purchase, take(WARM_ROWS))
        table.drained_at(WARM_ROWS, WARM_S)
        table.empty()
        with paused(workers):
            # The whole backlog is there before the first op of it is applied.
            pipeline.enqueue_bulk_insert(purchase, one_bucket)
        kill_group(_writer(target))
        if table.count() == count:
            raise RuntimeError("the bucket was drained before its writer was killed; take more rows")
        stall_s = _longest_stall_s(table, count)
    table.empty()
    return [Figure("killed worker", stall_s, "s", f"SIGKILL to the writer of a bucket with {count:,} queued ops")]


def measure_lost_bell(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the longest time until a row was visible whose Celery message was lost."""
    purchase, log = ours.prepare(target), target.redis()
    table.empty()
    with running(target, ours.worker_command()):
        pipeline.enqueue_bulk_insert(purchase, take(WARM_ROWS))
        table.drained_at(WARM_ROWS, WARM_S)
        times = [_lost_bell_s(purchase, table, log) for _ in range(LOST_BELLS)]
    table.empty()
    return [Figure("lost bell", max(times), "s", f"longest of {LOST_BELLS}", tuple(times))]


def _lost_bell_s(purchase: Any, table: Table, log: Any) -> float:
    silence(log)
    with losing_publishes() as lost:
        started = time.perf_counter()
        receipt = pipeline.enqueue_insert(purchase, **next(take(1)))
        seconds = seen_at(table, receipt.id) - started
    if not lost.count:
        raise RuntimeError("the enqueue rang no bell, so none was lost")
    return seconds


def _writer(target: Target) -> int:
    """Wait until a worker is within an INSERT and return the id of its process."""
    connections = [target.connect(shard) for shard in range(len(target.primaries))]
    deadline = time.perf_counter() + GIVE_UP_S
    try:
        while time.perf_counter() < deadline:
            for connection in connections:
                port = _inserting_port(connection)
                process = port and process_of_port(port)
                if process:
                    return process
            time.sleep(LOOK_S)
    finally:
        for connection in connections:
            connection.close()
    raise TimeoutError(f"no worker was seen writing within {GIVE_UP_S} s")


def _inserting_port(connection: Any) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT host FROM information_schema.processlist"
            " WHERE id <> CONNECTION_ID() AND command = 'Query' AND info LIKE 'INSERT%purchase%'"
        )
        row = cursor.fetchone()
    return int(row[0].rpartition(":")[2]) if row else None


def _longest_stall_s(table: Table, rows: int) -> float:
    """Follow the highest id until all rows are there and return the longest time in which it did not grow."""
    moved, last, longest = time.perf_counter(), table.last_id(), 0.0
    deadline, counted = moved + RECOVERED_S, 0.0
    while time.perf_counter() < deadline:
        time.sleep(LOOK_S)
        now, newest = time.perf_counter(), table.last_id()
        if newest != last:
            longest, moved, last = max(longest, now - moved), now, newest
        elif now - max(moved, counted) > 0.2:
            # A still bucket: either stalled, or complete; counting scans, so not on each look.
            counted = now
            if table.count() == rows:
                return longest
    raise TimeoutError(f"the bucket was not drained {RECOVERED_S} s after the kill")
