"""Measure how long ops of other buckets wait while one bad op is found: the longest wait under a steady load."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydal import DAL, Field

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.processes import running
from benchmarks.rows import TABLE, Row, take
from benchmarks.sockets import process_of_port
from benchmarks.table import Table
from benchmarks.target import Target
from pipeline.errors import Rejected

KEYS = 200
PER_S = 100
#: How long the load goes on after the bad op.
LOAD_S = 8
LOOK_S = 0.01
GIVE_UP_S = 60
ROUNDS = 3
BAD = "bad"
TRIGGER = f"""CREATE TRIGGER bad BEFORE INSERT ON {TABLE} FOR EACH ROW
BEGIN IF NEW.note = '{BAD}' THEN {{}}; END IF; END"""
SLEEPS = "SELECT host FROM information_schema.processlist WHERE state = 'User sleep'"

Around = Callable[[Target], Any]


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the longest time from the enqueue of another bucket's op until its row was there, by what is bad."""
    purchase = ours.prepare(target)
    cases: dict[str, tuple[Around, Callable[[Any], Any]]] = {
        "an op refused in an unlisted way": (_trigger("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001"), _bad),
        "an op of a schema to come": (_column_later, _ahead),
        "an op that takes too long": (_trigger("DO SLEEP(60)"), _bad),
        "an op that kills its worker": (_killing, _bad),
        "a locked row": (_locked, _locked_update),
    }
    figures = []
    for name, (around, send) in cases.items():
        table.empty()
        with running(target, ours.worker_command()):
            pipeline.enqueue_bulk_insert(purchase, take(WARM_ROWS))
            table.drained_at(WARM_ROWS, WARM_S)
            with around(target):
                waits, bad = _load(target, purchase, send)
            with suppress(Rejected):
                bad.wait(GIVE_UP_S)
        _everywhere(target, f"ALTER TABLE {TABLE} DROP COLUMN IF EXISTS colour")
        figures.append(Figure(f"beside {name}", max(waits), "s", f"longest of {len(waits)} ops of {KEYS} keys"))
    table.empty()
    return figures


def measure_refused(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the rate with one op in a thousand refused, over the rate with none; the same trigger looks at both."""
    purchase, count = ours.prepare(target), max(10_000, rows // 2)
    some = [{**row, "note": BAD} if n % 1000 == 0 else row for n, row in enumerate(take(count))]
    rates: dict[str, list[float]] = {"none": [], "some": []}
    with (
        _trigger("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001")(target),
        running(target, ours.worker_command()),
    ):
        for _ in range(ROUNDS):
            for name, sent, wanted in (("none", list(take(count)), count), ("some", some, count - count // 1000)):
                table.empty()
                began = time.perf_counter()
                pipeline.enqueue_bulk_insert(purchase, sent)
                rates[name].append(count / (table.drained_at(wanted, WARM_S) - began))
    table.empty()
    ratio = statistics.median(rates["some"]) / statistics.median(rates["none"])
    return [
        Figure("one in 1,000 refused", ratio, "×", f"of the rate with none, {count:,} ops, {ROUNDS} rounds in turn")
    ]


def _load(target: Target, purchase: Any, send: Callable[[Any], Any]) -> tuple[list[float], Any]:
    """Enqueue at a steady rate, a bad op among the first; return how long each op of another bucket waited, and the
    bad op's receipt."""
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    ended = threading.Event()
    watchers = [
        threading.Thread(target=_watch, args=(target, shard, sent, seen, ended))
        for shard in range(len(target.primaries))
    ]
    for watcher in watchers:
        watcher.start()
    others, bad = [], None
    pace: list[Row] = [{**row, "customer": n % KEYS} for n, row in enumerate(take(PER_S * LOAD_S))]
    began = time.perf_counter()
    for n, row in enumerate(pace):
        if n == PER_S // 10:
            bad = send(purchase)
        time.sleep(max(0.0, began + n / PER_S - time.perf_counter()))
        receipt = pipeline.enqueue_insert(purchase, **row)
        sent[receipt.id] = time.perf_counter()
        others.append(receipt)
    assert bad is not None
    waited = [receipt.id for receipt in others if receipt.bucket != bad.bucket]
    deadline = time.perf_counter() + GIVE_UP_S
    while not seen.keys() >= set(waited):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{len(set(waited) - seen.keys())} ops of other buckets were not applied")
        time.sleep(LOOK_S)
    ended.set()
    for watcher in watchers:
        watcher.join()
    return [seen[id] - sent[id] for id in waited], bad


def _watch(target: Target, shard: int, sent: dict[int, float], seen: dict[int, float], ended: threading.Event) -> None:
    with target.connect(shard) as connection, connection.cursor() as cursor:
        while not ended.wait(LOOK_S):
            waiting = [id for id in list(sent) if id not in seen]
            if waiting:
                cursor.execute(f"SELECT id FROM {TABLE} WHERE id IN ({', '.join(map(str, waiting))})")
                found = [id for (id,) in cursor.fetchall()]
                seen.update(dict.fromkeys(found, time.perf_counter()))


def _bad(purchase: Any) -> Any:
    return pipeline.enqueue_insert(purchase, customer=KEYS + 1, note=BAD)


def _ahead(purchase: Any) -> Any:
    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    newer = db.define_table(TABLE, Field("customer", "bigint"), Field("colour"))
    return pipeline.enqueue_insert(newer, customer=KEYS + 1, colour="red")


def _locked_update(purchase: Any) -> Any:
    return pipeline.enqueue_update(purchase.id == _locked_row[0], qty=1)


#: The row that `_locked` holds.
_locked_row: list[int] = []


@contextmanager
def _locked(target: Target) -> Iterator[None]:
    receipt = pipeline.enqueue_insert(TABLE, customer=KEYS + 1, qty=0)
    receipt.wait(GIVE_UP_S)
    _locked_row[:] = [receipt.id or 0]
    for shard in range(len(target.primaries)):
        connection = target.connect(shard)
        connection.begin()
        with connection.cursor() as cursor:
            if cursor.execute(f"SELECT id FROM {TABLE} WHERE id = {receipt.id} FOR UPDATE"):
                break
        connection.close()
    try:
        yield
    finally:
        connection.close()


@contextmanager
def _column_later(target: Target) -> Iterator[None]:
    try:
        yield
    finally:
        _everywhere(target, f"ALTER TABLE {TABLE} ADD COLUMN colour VARCHAR(512)")


def _trigger(does: str) -> Around:
    @contextmanager
    def around(target: Target) -> Iterator[None]:
        _everywhere(target, TRIGGER.format(does))
        try:
            yield
        finally:
            _everywhere(target, "DROP TRIGGER bad")

    return around


@contextmanager
def _killing(target: Target) -> Iterator[None]:
    ended = threading.Event()
    killer = threading.Thread(target=_kill, args=(target, ended))
    with _trigger("DO SLEEP(1)")(target):
        killer.start()
        try:
            yield
        finally:
            ended.set()
            killer.join()


def _kill(target: Target, ended: threading.Event) -> None:
    """Kill each worker process that is within the statement that sleeps, once."""
    known: set[str] = set()
    connections = [target.connect(shard) for shard in range(len(target.primaries))]
    while not ended.wait(LOOK_S):
        for connection in connections:
            with connection.cursor() as cursor:
                cursor.execute(SLEEPS)
                for (host,) in cursor.fetchall():
                    process = host not in known and process_of_port(int(host.rpartition(":")[2]))
                    known.add(host)
                    if process:
                        os.kill(process, signal.SIGKILL)


def _everywhere(target: Target, sql: str) -> None:
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
