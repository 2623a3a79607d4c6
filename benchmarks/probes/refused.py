"""Measure what refused ops cost: one in a thousand, ten thousand in a row, and their replay with what waits behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pipeline
from benchmarks.cpu import Meter
from benchmarks.figure import Figure
from benchmarks.peer import WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.probes.bad_things import BAD, SIGNAL, Bad, Case, every, everywhere, trigger
from benchmarks.processes import running
from benchmarks.rows import TABLE, Row, take
from benchmarks.table import Table
from benchmarks.target import Target
from pipeline.admin.dead import HEADS, Where, chosen, replay
from pipeline.client import Client

Enqueue = Callable[[Any, list[Row]], object]
ROUNDS = 3
#: Of single ops so many are sent where a bulk load sends more: each costs its caller and Redis alone 50 times a row's.
SINGLE = 10
#: Bad rows before the clock starts, and how often, so that each worker process meets one on each shard. They are fewer
#: than halt the table: more among so few rows did, and half of a run's rows waited on the shard that had halted it.
WARM_BAD, WARM_TIMES = 4, 4
#: So many ops are refused in a row in a full run.
MANY = 10_000
CHECK = f"ALTER TABLE {TABLE} ADD CONSTRAINT bad CHECK (note <> '{BAD}')"
WELCOME = f"ALTER TABLE {TABLE} DROP CONSTRAINT bad"
#: A parent for each value of a column, a value that has none, the key, and a trigger's statement that looks for one.
NO_QTY = 1_000_003
QUANTITIES = (
    "CREATE TABLE IF NOT EXISTS quantity (id INT PRIMARY KEY)",
    "INSERT IGNORE INTO quantity SELECT seq FROM seq_0_to_1000",
)
REFER = f"ALTER TABLE {TABLE} ADD CONSTRAINT bad FOREIGN KEY (qty) REFERENCES quantity (id)"
LOOK = "IF NOT EXISTS (SELECT 1 FROM quantity WHERE id = NEW.qty) THEN SIGNAL SQLSTATE '45000'; END IF"
#: The rows of a shard, the sum of their customers, and the ops that are set aside.
FOUND = f"SELECT COUNT(*), COALESCE(SUM(customer), 0), (SELECT COUNT(*) FROM pipeline_rejects) FROM {TABLE}"
#: The bytes that ops which are set aside take on a shard.
SPACE = (
    "SELECT SUM(data_length + index_length) FROM information_schema.tables"
    " WHERE table_schema = DATABASE() AND table_name IN ('pipeline_rejects', 'pipeline_held')"
)
#: What a round leaves behind that would slow the next.
FORGET = (
    "DELETE FROM pipeline_held",
    "DELETE FROM pipeline_rejects",
    "DELETE FROM pipeline_stops",
    "UPDATE pipeline_watermarks SET state = 'active' WHERE state = 'holding'",
)


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the CPU of a row with none in a thousand refused, over that with one; the same constraint looks at both.

    In bulk, and one at a time.

    CPU of all that takes part, and of workers and databases alone: wall times differ too much beside other programs.
    """
    purchase = ours.prepare(target)
    kinds: dict[str, Case] = {
        "a CHECK": _checked,
        "a trigger's SIGNAL": trigger(SIGNAL),
        "a SIGNAL without a number": trigger("SIGNAL SQLSTATE '45000'"),
        "a trigger that looks at other rows": _looking,
        "a foreign key": _referring,
    }
    ways: tuple[tuple[str, int, Enqueue], ...] = (
        ("", max(10_000, rows // 2), pipeline.enqueue_bulk_insert),
        (", single ops", max(10_000, rows // SINGLE), _each),
    )
    figures = []
    for kind, around in kinds.items():
        with around(target, purchase):
            for label, count, enqueue in ways:
                good = list(take(count))
                some = [{**row, "note": BAD, "qty": NO_QTY} if n % 1000 == 500 else row for n, row in enumerate(good)]
                spent: dict[str, list[dict[str, float]]] = {"none": [], "one": []}
                for _ in range(ROUNDS):
                    for name, sent in (("none", good), ("one", some)):
                        spent[name].append(_refused_round(target, table, purchase, sent, enqueue))
                figures += _refused_figures(f"one in 1,000 refused by {kind}{label}", spent, count)
    table.empty()
    return figures


def _each(purchase: Any, sent: list[Row]) -> None:
    """Enqueue ops one at a time, as a web application does."""
    for row in sent:
        pipeline.enqueue_insert(purchase, **row)


def measure_many(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return how long it takes to refuse many ops in a row, what space they take, and the rate of their replay.

    Each refused insert has an update of its row behind it, which is parked. The breaker is off: it would halt.
    """
    purchase, count = ours.prepare(target), min(MANY, max(1_000, rows // 20))
    table.empty()
    everywhere(target, *FORGET, CHECK)
    text = target.config.read_text()
    target.config.write_text(f"{text}\n[apply]\nbreaker = false\n")
    pipeline.configure(target.config)
    purchase = ours.prepare(target)
    client = Client(target.config)
    sent = [{**row, "note": BAD} for row in take(count)]
    try:
        with running(target, ours.worker_command()):
            began = time.perf_counter()
            receipts = pipeline.enqueue_bulk_insert(purchase, sent)
            pipeline.barrier(purchase, timeout_s=WARM_S * 2)
            refused_s = time.perf_counter() - began
            for receipt in receipts:
                pipeline.enqueue_update(purchase.id == receipt.id, qty=1)
            pipeline.barrier(purchase, timeout_s=WARM_S * 2)
            everywhere(target, "ANALYZE TABLE pipeline_rejects, pipeline_held")
            space = sum(int(found or 0) for [found] in every(target, SPACE))
            everywhere(target, WELCOME)
            began = time.perf_counter()
            done = sum(step.done.replayed for step in replay(client, chosen(client, Where(), HEADS)))
            replayed_s = time.perf_counter() - began
        if (done, table.count()) != (2 * count, count):
            raise AssertionError(f"{done:,} of {2 * count:,} ops were replayed, and {table.count():,} rows are there")
    finally:
        client.close()
        target.config.write_text(text)
        pipeline.configure(target.config)
        table.empty()
        everywhere(target, *FORGET, WELCOME.replace("CONSTRAINT", "CONSTRAINT IF EXISTS"))
    return [
        Figure(
            "10,000 refused in a row", refused_s * MANY / count, "s", f"{count:,} in {refused_s:.1f} s, breaker off"
        ),
        Figure(
            "space of an op that is set aside", space / count / 2, "bytes", "of an insert of 5 columns and an update"
        ),
        Figure("replay with parked followers", done / replayed_s, "ops/s", f"{done:,} ops in {replayed_s:.1f} s"),
    ]


def _refused_round(target: Target, table: Table, purchase: Any, sent: list[Row], enqueue: Enqueue) -> dict[str, float]:
    """Enqueue rows to workers that know nothing yet, and wait; return the CPU of a row by who used it, µs."""
    meter = Meter(target)
    table.empty()
    everywhere(target, *FORGET)
    with running(target, ours.worker_command()):
        bad = [row for row in sent if row["note"] == BAD][:WARM_BAD]  # an unknown error is tried before it is believed
        for n in range(1, WARM_TIMES + 1):
            pipeline.enqueue_bulk_insert(purchase, [*take(WARM_ROWS), *bad])
            table.drained_at(n * WARM_ROWS, WARM_S)
            pipeline.barrier(purchase, timeout_s=WARM_S)
        table.empty()
        good = [row for row in sent if row["note"] != BAD]
        begun, before = _found(target), meter.read()
        enqueue(purchase, sent)
        table.drained_at(len(good), WARM_S)
        pipeline.barrier(purchase, timeout_s=WARM_S)
        spent = {name: (now - before[name]) / len(sent) * 1e6 for name, now in meter.read().items()}
    due = [len(good), sum(row["customer"] for row in good), len(sent) - len(good)]
    done = [now - then for now, then in zip(_found(target), begun, strict=True)]
    if done != due:
        raise AssertionError(
            f"rows, their sum, and ops set aside are {done} and should be {due}: a row is lost or doubled"
        )
    return spent


def _found(target: Target) -> list[int]:
    return [int(sum(column)) for column in zip(*every(target, FOUND), strict=True)]


def _refused_figures(what: str, spent: dict[str, list[dict[str, float]]], count: int) -> Iterator[Figure]:
    for label, whose in (("", None), (", workers and databases", ("workers", "MariaDB"))):
        sums = {name: [sum(one[who] for who in whose or one) for one in samples] for name, samples in spent.items()}
        ratio = statistics.median(sums["none"]) / statistics.median(sums["one"])
        parts = "; ".join(
            f"{name}: " + ", ".join(f"{who} {statistics.median(one[who] for one in found):.1f}" for who in found[0])
            for name, found in spent.items()
        )
        detail = f"CPU of a row, none / one, {count:,} ops, {ROUNDS} rounds in turn; {parts}"
        yield Figure(f"{what}{label}", ratio, "×", detail, tuple(sums["one"]))


@contextmanager
def _referring(target: Target, purchase: Any) -> Iterator[Bad]:
    everywhere(target, *QUANTITIES, REFER)
    purchase._db.define_table("quantity", migrate=False, redefine=True)
    pipeline.define_tables(purchase._db)  # any op may make a parent
    try:
        yield Bad(list)
    finally:
        everywhere(target, f"ALTER TABLE {TABLE} DROP FOREIGN KEY bad")


@contextmanager
def _looking(target: Target, purchase: Any) -> Iterator[Bad]:
    everywhere(target, *QUANTITIES)
    with trigger(LOOK)(target, purchase) as bad:
        yield bad


@contextmanager
def _checked(target: Target, purchase: Any) -> Iterator[Bad]:
    everywhere(target, CHECK)
    try:
        yield Bad(list)
    finally:
        everywhere(target, WELCOME)
