"""Measure what record versioning costs the workers: updates that keep a version beside updates that do not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import DRAIN_S
from benchmarks.peers import ours
from benchmarks.processes import paused, running
from benchmarks.rows import TABLE, take
from benchmarks.table import Table
from benchmarks.target import Target
from pipeline.attachment import detach

#: Part of the run's rows that is updated: 10,000 in a full run, each row once on average.
SHARE, ROUNDS = 0.05, 3
_SEED = 20_261_124

Update = Callable[[int, int], object]


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the rates at which a backlog of plain and of versioned updates is applied, and their ratio."""
    purchase, count = ours.prepare(target), max(500, round(rows * SHARE))
    _keep_versions(target, purchase)
    table.empty()
    _archived(target, "TRUNCATE TABLE {}")
    updates: dict[str, Update] = {
        "updates": lambda row, qty: pipeline.enqueue_update(purchase.id == row, qty=qty),
        "versioned updates": lambda row, qty: purchase._db(purchase.id == row).update(qty=qty),
    }
    rates: dict[str, list[float]] = {name: [] for name in updates}
    with running(target, ours.worker_command()) as workers:
        ids = [receipt.id for receipt in pipeline.enqueue_bulk_insert(purchase, take(count))]
        table.drained_at(count, DRAIN_S)
        luck = random.Random(_SEED)  # one for all rounds: an update to the value that is there keeps no version
        for _ in range(ROUNDS):
            for name, update in updates.items():
                rates[name].append(_rate(workers, ids, update, luck))
    detach(purchase)
    if (found := _archived(target, "SELECT COUNT(*) FROM {}")) != count * ROUNDS:
        raise RuntimeError(f"{found:,} versions were kept of {count * ROUNDS:,}")
    table.empty()
    _archived(target, "TRUNCATE TABLE {}")
    ratios = [kept / plain for plain, kept in zip(*rates.values(), strict=True)]
    detail = f"{count:,} updates of {count:,} rows, queued while the workers stand still"
    return [
        *(Figure(name, sorted(found)[ROUNDS // 2], "ops/s", detail, tuple(found)) for name, found in rates.items()),
        Figure("versioned / plain updates", sorted(ratios)[ROUNDS // 2], "×", "of the same round", tuple(ratios)),
    ]


def _keep_versions(target: Target, purchase: Any) -> None:
    purchase._db._migrate = False  # the archive is the pipeline's to create
    purchase._enable_record_versioning()
    pipeline.attach(purchase)
    pipeline.define_tables(purchase._db)
    ours.migrate(target)


def _archived(target: Target, sql: str) -> int:
    """Run a statement on each shard's archive, and return the sum of what it counts."""
    found = 0
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(sql.format(f"{TABLE}_archive"))
            found += sum(count for (count,) in cursor.fetchall())
    return found


def _rate(workers: Any, ids: Sequence[int], update: Update, luck: random.Random) -> float:
    with paused(workers):
        for _ in ids:
            update(luck.choice(ids), luck.randrange(2**31))
        started = time.perf_counter()
    pipeline.barrier(TABLE, timeout_s=DRAIN_S)
    return len(ids) / (time.perf_counter() - started)
