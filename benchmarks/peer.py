"""Define a peer, whose workers run in a block that yields a function which enqueues rows; measure the peer's rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.cpu import Meter
from benchmarks.rows import Row, plain, take
from benchmarks.table import Table
from benchmarks.target import Target

Enqueue = Callable[[Sequence[Row]], None]

#: Rows that wake every process and thread and open their connections before the clock starts.
WARM_ROWS = 200
WARM_S = 60
DRAIN_S = 120


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to bring rows into the databases.

    `share` is the part of the run's rows that this peer gets: a slow peer needs fewer for a measurement of the same
    length. `family` joins the variants of one peer, of which the best is repeated. `keeps` says what it promises.
    `typed` peers take Python values, the others what JSON can carry.
    """

    name: str
    family: str
    share: float
    open: Callable[[Target], AbstractContextManager[Enqueue]]
    keeps: str = ""
    typed: bool = False


class Sample(NamedTuple):
    """Rows per second from the first enqueue until all are committed, and µs of CPU a row by who used it."""

    rate: float
    cpu: dict[str, float]


def measure_rate(peer: Peer, target: Target, table: Table, sent: Sequence[Row]) -> Sample:
    """Send rows through a peer with warm workers, and return what that took.

    Raises:
        NotDrained: rows were missing at the end, or applied twice.
    """
    meter = Meter(target)
    table.empty()
    with peer.open(target) as enqueue:
        enqueue(sent[:WARM_ROWS])
        table.drained_at(len(sent[:WARM_ROWS]), WARM_S)
        table.empty()
        before, started = meter.read(), time.perf_counter()
        enqueue(sent)
        finished = table.drained_at(len(sent), DRAIN_S)
        spent = {who: 1e6 * (cpu_s - before[who]) / len(sent) for who, cpu_s in meter.read().items()}
    return Sample(len(sent) / (finished - started), spent)


def rows_of(peer: Peer, rows: int) -> int:
    """Return how many of the run's *rows* this peer gets."""
    return max(WARM_ROWS, round(rows * peer.share))


def rows_for(peer: Peer, rows: int) -> list[Row]:
    """Return the rows that this peer gets of the run's number of *rows*."""
    source = list(take(rows_of(peer, rows)))
    return source if peer.typed else plain(source)
