"""Measure whether a worker's memory stays flat over a million ops, and small where ops are large."""

from __future__ import annotations

import time

from pydal import DAL, Field

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import DRAIN_S
from benchmarks.peers import ours
from benchmarks.probes.bad_things import everywhere
from benchmarks.processes import members_of, rss_bytes, rss_bytes_of, running
from benchmarks.rows import take
from benchmarks.table import Table
from benchmarks.target import Target

#: The ops come in ten chunks of half the run's rows: 1,000,000 ops in a full run.
CHUNKS, SHARE = 10, 0.5
#: Ops so large, in so many buckets, are drained within this time.
LARGE, LARGE_BYTES, LARGE_BUCKETS, LARGE_S = "large", 10_000_000, 64, 300
LOOK_S = 0.02
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


def measure_large(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the memory of the worker's process that drains ops of 10 MB of 64 buckets, and what it reads to do so."""
    ours.prepare(target)
    everywhere(target, f"CREATE TABLE IF NOT EXISTS {LARGE} (id BIGINT PRIMARY KEY, body LONGTEXT)")
    large = DAL("sqlite:memory", migrate=False, bigint_id=True).define_table(LARGE, Field("body", "text"))
    redis, buckets, sent = target.redis(), set[int](), 0
    while len(buckets) < LARGE_BUCKETS:
        buckets.add(pipeline.enqueue_insert(large, body="x" * LARGE_BYTES).bucket)
        sent += LARGE_BYTES
    before, largest, took_s = redis.info("stats")["total_net_output_bytes"], 0, 0.0
    with running(target, ours.worker_command(concurrency=1)) as (worker,):
        began = time.perf_counter()
        while _stored(target) < sent and took_s < LARGE_S:
            largest = max(largest, *(rss_bytes_of(pid) for pid in members_of(worker.pid)))
            time.sleep(LOOK_S)
            took_s = time.perf_counter() - began
    read = (redis.info("stats")["total_net_output_bytes"] - before) / sent
    everywhere(target, f"DROP TABLE {LARGE}")
    if took_s >= LARGE_S:
        raise TimeoutError(f"large ops were not applied within {LARGE_S} s")
    detail = f"{sent // LARGE_BYTES} ops of {LARGE_BYTES // 10**6} MB in {len(buckets)} buckets, in {took_s:.0f} s"
    return [
        Figure("worker memory, large ops", largest / 2**20, "MiB", f"its largest process; {detail}"),
        Figure("read / applied, large ops", read, "×", "all that Redis sent"),
    ]


def _stored(target: Target) -> int:
    """Return the bytes of all large rows."""
    found = 0
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {LARGE}")
            [count] = cursor.fetchone() or (0,)
            found += int(count) * LARGE_BYTES
    return found
