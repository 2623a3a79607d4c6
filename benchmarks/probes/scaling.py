"""Measure ops a second for 1, 2 and 4 workers and shards, with the CPU time that each part takes of an op.

Where cores are few, the parts wait for each other, and the rate says more of the machine than of the pipeline. The CPU
time of a part does not: it tells what a machine of its own would take. Each combination has servers of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from threading import Barrier, Thread
from typing import Any, NamedTuple

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import DRAIN_S, WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.processes import members_of, running
from benchmarks.rows import take
from benchmarks.table import Table, open_table
from benchmarks.target import Target

COUNTS = (1, 2, 4)
#: Part of the run's rows of each round, and of the round with one op per call.
SHARE, SINGLE_SHARE, ROUNDS = 0.3, 0.1, 3
#: Threads of a web process that enqueue and read at once.
THREADS = 8
_TICKS = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU time by part, in seconds; of all processes of the part."""

    producer: float
    redis: float
    workers: float
    databases: float

    def since(self, before: Cpu, ops: int) -> Cpu:
        """Return microseconds per op since another reading."""
        return Cpu(*((now - was) * 1e6 / ops for now, was in zip(self, before, strict=True)))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.1f}" for name, value in zip(self._fields, self, strict=True)) + " µs/op"


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return a figure for each number of workers and shards, on clusters of its own; the run's own servers idle."""
    found: list[Figure] = []
    for shards in COUNTS:
        with _cluster(shards) as (mine, pids), open_table(mine) as purchases:
            for workers in COUNTS:
                found += _combination(mine, purchases, pids, workers, rows)
    pipeline.configure(target.config)
    return found


def _combination(target: Target, table: Table, servers: dict[str, int], workers: int, rows: int) -> Iterator[Figure]:
    purchase, shards = ours.prepare(target), len(target.primaries)
    commands = [ours.worker_command(1, f"scaling{n}") for n in range(workers)]
    few, many = list(take(round(rows * SINGLE_SHARE))), list(take(round(rows * SHARE)))
    with running(target, *commands) as started:
        _through(table, purchase, many[:WARM_ROWS], WARM_S)

        def cpu() -> Cpu:
            groups = [pid for one in started for pid in members_of(one.pid)]
            databases = sum(_cpu_s(pid) for name, pid in servers.items() if name != "redis")
            return Cpu(time.process_time(), _cpu_s(servers["redis"]), sum(map(_cpu_s, groups)), databases)

        before, rates = cpu(), []
        for _ in range(ROUNDS):
            rates.append(_through(table, purchase, many, DRAIN_S))
        spent = cpu().since(before, ROUNDS * len(many))
        databases, redis = _connections(target)
        name = f"{workers} worker{'s' * (workers > 1)} × {shards} shard{'s' * (shards > 1)}"
        cores = sum(spent) * median(rates) / 1e6
        detail = f"CPU: {spent}, {cores:.1f} cores; connections: {databases} of a primary, {redis} of Redis"
        yield Figure(name, median(rates), "ops/s", detail, tuple(rates))
        if workers == shards == 2:
            before = cpu()
            started_s = time.perf_counter()
            for row in few:
                pipeline.enqueue_insert(purchase, **row)
            rate = len(few) / (time.perf_counter() - started_s)
            table.drained_at(len(few) + len(many), DRAIN_S)
            yield Figure("one op per call", rate, "ops/s", f"CPU: {cpu().since(before, len(few))}")
            yield _of_threads(target, purchase)
        table.empty()


def _through(table: Table, purchase: Any, rows: list[dict[str, Any]], timeout_s: float) -> float:
    table.empty()
    started_s = time.perf_counter()
    pipeline.enqueue_bulk_insert(purchase, rows)
    return len(rows) / (table.drained_at(len(rows), timeout_s) - started_s)


def _connections(target: Target) -> tuple[int, int]:
    """Return how many connections the primary with most has, and Redis, without those of this count."""
    counts = []
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE db IS NOT NULL")
            counts.append(int(cursor.fetchone()[0]) - 2)  # type: ignore[index]  # this one, and the table's
    with target.redis() as redis:
        return max(counts), redis.info("clients")["connected_clients"] - 1


def _of_threads(target: Target, purchase: Any) -> Figure:
    """Return what the threads of one web process add, which all enqueue and read at once, on every shard."""
    before, meeting, after = _connections(target), Barrier(THREADS + 1), list[tuple[int, int]]()

    def work(n: int) -> None:
        meeting.wait()
        for customer in range(n * 20, n * 20 + 20):
            receipt = pipeline.enqueue_insert(purchase, customer=customer, qty=1)
            pipeline.get(purchase, receipt.id, after=receipt, wait_s=DRAIN_S)  # it counts connections
        meeting.wait()  # all connections are open
        meeting.wait()

    threads = [Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    meeting.wait()
    meeting.wait()
    after.append(_connections(target))
    meeting.wait()
    for thread in threads:
        thread.join()
    databases, redis = (now - was for now, was in zip(after[0], before, strict=True))
    return Figure(f"a process of {THREADS} threads", databases, "connections of a primary", f"{redis} of Redis")


@contextmanager
def _cluster(shards: int) -> Iterator[tuple[Target, dict[str, int]]]:
    """Start primaries and a Redis; yield them, and the process of each."""
    from pipeline.devcluster import Cluster

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        cluster = Cluster.up(
            folder / "cluster", "mariadb", shards=shards, replicas=0, workers=0, buckets=256, owned=True
        )
        stack.callback(cluster.down)
        stack.callback(pipeline.close)  # before its servers end
        yield Target.load(cluster.config), {process.name: process.pid for process in cluster.processes}


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process, its threads included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS
