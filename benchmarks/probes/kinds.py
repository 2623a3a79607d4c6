"""Measure the processor time of an op, by its kind: of its caller, of Redis, of the workers and of MariaDB.

Wall times differ between two runs on a machine that others use; processor times differ less, and their ratios hardly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

from pydal import DAL, Field

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import DRAIN_S
from benchmarks.peers import ours
from benchmarks.processes import cpu_s, paused, running
from benchmarks.rows import take
from benchmarks.sockets import process_of_port
from benchmarks.table import Table
from benchmarks.target import Target

#: Part of the run's rows that is the number of ops of each kind: 4,000 in a full run.
SHARE, ROUNDS = 0.02, 3
#: Rows that counters are in: each is counted up by every fiftieth op.
HOT = 50
#: Customers that ops are about: each upsert's row comes ten times.
CUSTOMERS = 400
_SEED = 20_261_129
CREATE = """CREATE TABLE IF NOT EXISTS tally (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, customer BIGINT, sku VARCHAR(40), n INT, at DATETIME,
  UNIQUE (customer, sku)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci"""

Send = Callable[[int], object]


@dataclass(slots=True)
class Spent:
    """Samples of one kind: µs of processor time per op by who spent it, and ops per second from the first commit on."""

    by: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


def measure(target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the processor time of an op of each kind on the apply side, workers and MariaDB, and in all."""
    many = max(500, round(rows * SHARE))
    for shard in range(len(target.primaries)):
        with target.connect(shard) as connection, connection.cursor() as cursor:
            cursor.execute(CREATE)
            cursor.execute("TRUNCATE TABLE tally")
    purchase = ours.prepare(target)
    db = purchase._db
    tally = _tally(db)
    pipeline.define_tables(db)
    ours.migrate(target)
    table.empty()
    kinds = {name: Spent() for name in ("inserts", "updates", "counters", "deletes", "upserts", "atomic groups")}
    with running(target, ours.worker_command()) as workers, _watched(target, workers) as watched:
        for _ in range(ROUNDS):
            ids = [receipt.id for receipt in pipeline.enqueue_bulk_insert(purchase, take(many))]
            pipeline.barrier(purchase, timeout_s=DRAIN_S)
            for name, send in _sends(purchase, tally, ids).items():
                _sample(kinds[name], workers, watched, send, many)
    table.empty()
    return [figure for name, spent in kinds.items() for figure in _figures(name, spent, many)]


def _tally(db: DAL) -> Any:
    fields = (Field("customer", "bigint"), Field("sku", length=40), Field("n", "integer"), Field("at", "datetime"))
    return db.define_table("tally", *fields)


def _sends(purchase: Any, tally: Any, ids: Sequence[int]) -> dict[str, Send]:
    """Return what enqueues the nth op of each kind; the deletes come last, since they take the rows of the others."""
    rows, luck = list(take(len(ids))), random.Random(_SEED)
    shuffled, hot = random.Random(_SEED).sample(ids, len(ids)), ids[:HOT]
    at, sku = rows[0]["created_on"], count(ids[0])  # no round meets the unique values of another

    def upsert(n: int) -> object:
        customer = luck.randrange(CUSTOMERS)
        values = {"customer": customer, "sku": f"sku-{customer}", "n": n, "at": at}
        return pipeline.enqueue_upsert(tally, key=["customer", "sku"], **values)

    def group(n: int) -> object:
        customer = luck.randrange(CUSTOMERS)
        with pipeline.atomic():
            pipeline.enqueue_insert(purchase, **{**rows[n], "customer": customer})
            for _ in range(2):
                pipeline.enqueue_insert(tally, customer=customer, sku=f"g{next(sku)}", n=n, at=at)
        return None

    return {
        "inserts": lambda n: pipeline.enqueue_insert(purchase, **rows[n]),
        "updates": lambda n: pipeline.enqueue_update(purchase.id == shuffled[n], qty=n, note=rows[n]["note"]),
        "counters": lambda n: pipeline.enqueue_update(purchase.id == hot[n % HOT], qty=purchase.qty + 1),
        "upserts": upsert,
        "atomic groups": group,
        "deletes": lambda n: pipeline.enqueue_delete(purchase.id == shuffled[n]),
    }


@contextmanager
def _watched(target: Target, workers: Sequence[Popen[bytes]]) -> Iterator[dict[str, list[int]]]:
    """Yield the processes whose time is taken, by what they are; a worker stands for its group."""
    servers = [_port(uri.partition("://")[2]) for uri in target.primaries]
    found = {"MariaDB": _listeners(servers), "Redis": _listeners([_port(target.redis_url.partition("://")[2])])}
    yield {**found, "workers": [worker.pid for worker in workers]}


def _port(address: str) -> int:
    port = urlsplit(f"//{address}").port
    if port is None:
        raise ValueError("an address without a port")
    return port


def _listeners(ports: Sequence[int]) -> list[int]:
    return [process for port in ports if (process := process_of_port(port)) is not None]


def _sample(
    spent: Spent, workers: Sequence[Popen[bytes]], watched: dict[str, list[int]], send: Send, many: int
) -> None:
    before, began = {name: cpu_s(*found) for name, found in watched.items()}, time.process_time()
    with paused(list(workers)):
        for n in range(many):
            send(n)
        caller = time.process_time() - began
        started = time.perf_counter()
    for name in ("purchase", "tally"):
        pipeline.barrier(name, timeout_s=DRAIN_S)
    spent.rates.append(many / (time.perf_counter() - started))
    taken = {name: cpu_s(*found) - before[name] for name, found in watched.items()} | {"caller": caller}
    for name, seconds in taken.items():
        spent.by.setdefault(name, []).append(seconds / many * 1e6)


def _figures(name: str, spent: Spent, many: int) -> Iterator[Figure]:
    middle = {who: sorted(found)[ROUNDS // 2] for who, found in spent.by.items()}
    applied = [worker + server for worker, server in zip(spent.by["workers"], spent.by["MariaDB"], strict=True)]
    in_all = [sum(found) for found in zip(*spent.by.values(), strict=True)]
    detail = ", ".join(f"{who} {middle[who]:.0f}" for who in ("caller", "Redis", "workers", "MariaDB"))
    wall = f"{sorted(spent.rates)[ROUNDS // 2]:,.0f} ops/s"
    yield Figure(f"cpu, {name} applied", sorted(applied)[ROUNDS // 2], "µs", f"{many:,} queued; {wall}", tuple(applied))
    yield Figure(f"cpu, {name} in all", sorted(in_all)[ROUNDS // 2], "µs", detail, tuple(in_all))
