"""Measure how long others wait beside each bad thing, and how long until `status` names it, under a steady load."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pipeline
from benchmarks.figure import Figure
from benchmarks.peer import WARM_ROWS, WARM_S
from benchmarks.peers import ours
from benchmarks.probes.bad_things import CASES, GONE, LOOK_S, Bad, everywhere
from benchmarks.probes.refused import FORGET
from benchmarks.processes import ROOT, running
from benchmarks.rows import TABLE, Row, take
from benchmarks.table import Table
from benchmarks.target import Target
from pipeline.admin.observe import Observer
from pipeline.admin.observe.record import Record
from pipeline.config.settings import load
from pipeline.errors import PipelineError

KEYS = 200
PER_S = 100
#: How long the load goes on before and, at least, after the bad ops.
BEFORE_S, AFTER_S = 0.5, 4
GIVE_UP_S = 60


@dataclass(slots=True)
class Load:
    """A steady load of single inserts, on which the database is asked what it has.

    Attributes:
        sent: when each row was enqueued, by its id.
        seen: when each row was there.
        buckets: of each row.
    """

    sent: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    buckets: dict[int, int] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, purchase: Any) -> None:
        """Enqueue until it is ended."""
        rows: list[Row] = [{**row, "customer": n % KEYS} for n, row in enumerate(take(10_000))]
        began = time.perf_counter()
        for n, row in enumerate(rows):
            if self.ended.wait(max(0.0, began + n / PER_S - time.perf_counter())):
                return
            receipt = pipeline.enqueue_insert(purchase, **row)
            self.buckets[receipt.id] = receipt.bucket
            self.sent[receipt.id] = time.perf_counter()

    def watch(self, target: Target, shard: int, bad: Bad) -> None:
        """Ask a shard which rows it has, until it has all but those behind bad ops, or for too long after the end."""
        late = 0.0
        with target.connect(shard) as connection, connection.cursor() as cursor:
            while not late or (self.missing(bad.buckets) and time.perf_counter() < late):
                if self.ended.is_set() and not late:
                    late = time.perf_counter() + GIVE_UP_S
                if waiting := self.missing():
                    cursor.execute(f"SELECT id FROM {TABLE} WHERE id IN ({', '.join(map(str, waiting))})")
                    self.seen.update(dict.fromkeys([id for (id,) in cursor.fetchall()], time.perf_counter()))
                time.sleep(LOOK_S)

    def missing(self, but: Container[int] = ()) -> list[int]:
        """Return the rows of other buckets that were sent, and are not there."""
        return [id for id in list(self.sent) if id not in self.seen and self.buckets[id] not in but]

    def longest(self, but: Container[int]) -> float:
        """Return the longest time that a row of other buckets took to be there."""
        if missing := self.missing(but):
            raise TimeoutError(f"{len(missing)} ops of others were not applied within {GIVE_UP_S} s")
        return max(self.seen[id] - sent for id, sent in self.sent.items() if self.buckets[id] not in but)

    def behind(self, buckets: Container[int]) -> str:
        """Say how long the rows took that share a bucket with bad ops."""
        took = [self.seen.get(id, 0.0) - sent for id, sent in self.sent.items() if self.buckets[id] in buckets]
        if not took:
            return "no other row in the buckets of the bad ops"
        if min(took) < 0:
            return f"{sum(one < 0 for one in took)} of {len(took)} ops in the buckets of the bad ops wait with them"
        return f"{max(took):.2f} s in the buckets of the bad ops"


def measure(name: str, target: Target, table: Table, rows: int) -> list[Figure]:
    """Return the longest that an op of another bucket took beside a bad thing, and when `status` named what is bad."""
    case, named = CASES[name]
    purchase = ours.prepare(target)
    table.empty()
    everywhere(target, *FORGET, *GONE)
    with running(target, ours.worker_command()), observing(target) as newest:
        pipeline.enqueue_bulk_insert(purchase, take(WARM_ROWS))
        table.drained_at(WARM_ROWS, WARM_S)
        with case(target, purchase) as bad:
            made, named_s = _beside(target, purchase, bad, newest, named)
            behind = made.behind(bad.buckets)
            mend(target, bad)
            _settle(bad)
            if named != "newer":  # else rows would come that the next case takes for its own
                pipeline.barrier(purchase, timeout_s=GIVE_UP_S)
    table.empty()
    everywhere(target, *FORGET)  # else the definition that the next command withdraws is still named
    command(target, "tables", "forget", "odd")
    detail = f"longest of the ops of {KEYS} keys, {PER_S}/s; {behind}"
    figures = [Figure(f"beside {name}", made.longest(bad.buckets), "s", detail)]
    if named is not None:
        figures.append(Figure(f"named: {name}", named_s, "s", f"in `status`: {named}"))
    return figures


def command(target: Target, *words: str) -> None:
    """Run a command of the pipeline, whatever it answers."""
    argv = [sys.executable, "-m", "pipeline", *words]
    subprocess.run(argv, cwd=ROOT, env=target.environment(), capture_output=True, check=False)


def _beside(
    target: Target, purchase: Any, bad: Bad, newest: Callable[[], Record], named: str | None
) -> tuple[Load, float]:
    """Send bad ops among a load; return the load, and after how many seconds `status` named the bad ops."""
    made = Load()
    threads = [threading.Thread(target=made.run, args=(purchase,))]
    threads += [threading.Thread(target=made.watch, args=(target, n, bad)) for n in range(len(target.primaries))]
    for thread in threads:
        thread.start()
    try:
        time.sleep(BEFORE_S)
        began, named_s = time.perf_counter(), 0.0
        bad.receipts += bad.send()
        while named is not None and not names(newest(), named):
            if time.perf_counter() > began + GIVE_UP_S:
                raise TimeoutError(f"`status` does not say {named!r}")
            time.sleep(10 * LOOK_S)
        named_s = time.perf_counter() - began
        while named == "poison" and not names(newest(), "rejected") and time.perf_counter() < began + GIVE_UP_S:
            time.sleep(10 * LOOK_S)  # until the op is found
        time.sleep(max(0.0, began + AFTER_S - time.perf_counter()))
    finally:
        made.ended.set()
        for thread in threads:
            thread.join()
    return made, named_s


def names(record: Record, what: str) -> bool:
    """Return whether a record names ops that were refused, ops that are tried alone, or a reason to wait."""
    if what == "rejected":
        return any(shard.rejected for shard in record.shards)
    if what == "poison":
        told = {reason.kind for shard in record.shards for reason in shard.waits}
        return bool(told & {"testing", "overtime"}) or any(shard.poison or shard.rejected for shard in record.shards)
    return any(reason.kind == what for shard in record.shards for reason in shard.waits)


def mend(target: Target, bad: Bad) -> None:
    """Mend the cause of what waits."""
    everywhere(target, *bad.mend)
    if bad.resume:
        command(target, "resume", bad.resume)
    if bad.release is not None:
        bad.release()


def _settle(bad: Bad) -> None:
    """Wait until the bad ops are applied or refused."""
    ends = time.perf_counter() + GIVE_UP_S
    for receipt in bad.receipts:
        with suppress(PipelineError):
            receipt.wait(max(0.1, ends - time.perf_counter()))


@contextmanager
def observing(target: Target) -> Iterator[Callable[[], Record]]:
    """Yield what makes a record, as `status` does."""
    observer = Observer(load(target.config))
    try:
        yield observer.newest
    finally:
        observer.close()
