"""Measure what foreign keys cost the workers: three levels of rows, each row in another bucket than its parent's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydal import DAL, Field

import pipeline
from benchmarks.figure import Figure, median_figure
from benchmarks.peer import DRAIN_S
from benchmarks.peers import ours
from benchmarks.processes import paused, running
from benchmarks.rows import FAMILIES
from benchmarks.table import Table
from benchmarks.target import Target

#: Part of the run's rows: 12,000 in a full run.
SHARE, ROUNDS, WORKERS = 0.06, 3, 4
LEVELS = ("parent", "child", "grand")


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the rates at which a backlog of families is applied with foreign keys and without, and their ratio."""
    count = max(300, round(rows * SHARE)) // len(LEVELS)
    db = _prepare(target)
    owners = _owners_of_one_shard()
    rates: dict[tuple[str, str], list[float]] = {(way, family): [] for way in _QUEUE for family in FAMILIES}
    with running(target, ours.worker_command(WORKERS)) as workers:
        for way in _QUEUE:
            _rate(workers, way, [db[f"{family}_{level}"] for family in FAMILIES for level in LEVELS], owners, 50)
        for _ in range(ROUNDS):
            for (way, family), found in rates.items():
                found.append(_rate(workers, way, [db[f"{family}_{level}"] for level in LEVELS], owners, count))
    _drop(target)
    detail = f"{count * len(LEVELS):,} rows, queued while {WORKERS} workers stand still"
    figures = []
    for way in _QUEUE:
        held, loose = (rates[way, family] for family in FAMILIES)
        ratios = [one / other for one, other in zip(held, loose, strict=True)]
        figures += [
            median_figure(f"{way}with foreign keys", held, "ops/s", detail),
            median_figure(f"{way}without foreign keys", loose, "ops/s", detail),
            median_figure(f"{way}with / without foreign keys", ratios, "×", "of the same round"),
        ]
    return figures


def _prepare(target: Target) -> Any:
    """Publish the tables and create them; the foreign keys are those of an application's own migration."""
    pipeline.configure(target.config)
    db = DAL(None, migrate=False)
    for family in FAMILIES:
        for level in LEVELS:
            db.define_table(f"{family}_{level}", Field("customer", "bigint"), Field("up", "bigint"))
    pipeline.define_tables(db)
    ours.migrate(target)
    _everywhere(
        target,
        *(f"ALTER TABLE held_{child} ADD FOREIGN KEY (up) REFERENCES held_{up} (id)" for up, child in _generations()),
        *(f"ALTER TABLE loose_{child} ADD INDEX (up)" for _, child in _generations()),
    )
    return db


def _generations() -> Sequence[tuple[str, str]]:
    return list(pairwise(LEVELS))


def _owners_of_one_shard() -> list[int]:
    """Return shard keys of all buckets of the first shard."""
    topology, found = pipeline.current().topology, dict[int, int]()
    buckets = set(topology.buckets_of("s0"))
    owner = 0
    while len(found) < len(buckets):
        owner += 1
        bucket = topology.bucket_of("held_parent", owner)
        if bucket in buckets:
            found.setdefault(bucket, owner)
    return list(found.values())


def _singly(tables: Sequence[Any], owners: Sequence[int], count: int) -> None:
    for n in range(count):
        up = None
        for level, table in enumerate(tables):
            up = None if level % len(LEVELS) == 0 else up
            up = pipeline.enqueue_insert(table, customer=owners[(n + level) % len(owners)], up=up).id


def _in_bulk(tables: Sequence[Any], owners: Sequence[int], count: int) -> None:
    ups: list[int | None] = []
    for level, table in enumerate(tables):
        ups = ups if level % len(LEVELS) else [None] * count
        rows = [{"customer": owners[(n + level) % len(owners)], "up": up} for n, up in enumerate(ups)]
        ups = [one.id for one in pipeline.enqueue_bulk_insert(table, rows)]


#: How the rows are queued.
_QUEUE = {"": _singly, "bulk, ": _in_bulk}


def _rate(workers: Any, way: str, tables: Sequence[Any], owners: Sequence[int], count: int) -> float:
    with paused(workers):
        _QUEUE[way](tables, owners, count)
        started = time.perf_counter()
    for table in tables:
        pipeline.barrier(table, timeout_s=DRAIN_S)
    return count * len(tables) / (time.perf_counter() - started)


def _drop(target: Target) -> None:
    _everywhere(target, *(f"DROP TABLE {family}_{level}" for family in FAMILIES for level in reversed(LEVELS)))


def _everywhere(target: Target, *statements: str) -> None:
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)
