"""Show the counters of `oplog/counts` as Prometheus reads them: those of one worker, or of all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from pipeline.oplog.counts import (
    APPLIED,
    BATCH_MS,
    BATCH_SUM_MS,
    BOUNDS_MS,
    COMMIT_MS,
    COMMIT_SUM_US,
    HELD,
    PARKED,
    REJECTED,
    SEEN,
)

#: How many tables of a shard are told apart; the others are one, `OTHER`.
MOST_TABLES, OTHER = 20, "other"


class Counted(NamedTuple):
    """A counter: what it is called, what it counts, and the labels that follow its first word."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Duration(NamedTuple):
    """A histogram, its labels, the counter of its sum, and how many of that counter's units are a second."""

    name: str
    help: str
    sum: str
    per_s: int
    bounds_ms: tuple[int, ...] = BOUNDS_MS


#: By the first word of a counter.
COUNTERS = {
    APPLIED: Counted("ops_applied", "Ops whose effects were committed.", ("kind", "table")),
    REJECTED: Counted("ops_rejected", "Ops that the database refused for good.", ("table",)),
    PARKED: Counted("ops_parked", "Ops set aside behind a refused op, or because their table is stopped."),
    SEEN: Counted("ops_seen", "Ops that the shard had already: they were sent again, and dropped."),
    HELD: Counted("buckets_held", "How often a batch left a bucket waiting, by the reason's kind.", ("kind",)),
}
HISTOGRAMS = {
    BATCH_MS: Duration("batch_seconds", "Time of a batch's transaction.", BATCH_SUM_MS, 1000),
    COMMIT_MS: Duration("commit_seconds", "Time of a batch's COMMIT.", COMMIT_SUM_US, 1_000_000),
}


class Tables:
    """Which tables have a label of their own. Each keeps it: a counter that moved to another label would jump."""

    def __init__(self) -> None:
        self._own: dict[str, set[str]] = {}

    def label(self, shard: str, table: str) -> str:
        """Return a table's label: its name, or `OTHER`.

        Args:
            shard: the shard's name.
            table: the table's name.
        """
        own = self._own.setdefault(shard, set())
        if len(own) < MOST_TABLES:
            own.add(table)
        return table if table in own else OTHER


def metrics_of(counts: Mapping[str, Mapping[str, int]], prefix: str, tables: Tables) -> Iterator[Metric]:
    """Yield all counters and histograms; one that nobody has counted is there, and empty.

    Args:
        counts: by shard, its counters.
        prefix: begins each metric's name.
        tables: of the same reader, each time.
    """
    for word, counted in COUNTERS.items():
        yield _counter(word, counted, counts, prefix, tables)
    for word, timed in HISTOGRAMS.items():
        yield _histogram(word, timed, counts, prefix)


def _counter(
    word: str, counted: Counted, counts: Mapping[str, Mapping[str, int]], prefix: str, tables: Tables
) -> CounterMetricFamily:
    made = CounterMetricFamily(prefix + counted.name, counted.help, labels=("shard", *counted.labels))
    for shard, numbers in counts.items():
        found: dict[tuple[str, ...], int] = {}
        ours = {name: n for name, n in numbers.items() if name.partition(" ")[0] == word}
        for name in sorted(ours, key=ours.__getitem__, reverse=True):  # the busiest tables come first
            labels = name.split(" ", len(counted.labels))[1:]
            if counted.labels[-1:] == ("table",):
                labels[-1] = tables.label(shard, labels[-1])
            found[tuple(labels)] = found.get(tuple(labels), 0) + ours[name]
        for key, number in found.items():
            made.add_metric([shard, *key], number)
    return made


def _histogram(word: str, timed: Duration, counts: Mapping[str, Mapping[str, int]], prefix: str) -> Metric:
    made = HistogramMetricFamily(prefix + timed.name, timed.help, labels=("shard",))
    bounds = [*(str(ms / 1000) for ms in timed.bounds_ms), "+Inf"]
    for shard, numbers in counts.items():
        each = [numbers.get(f"{word} {bound:g}", 0) for bound in (*timed.bounds_ms, float("inf"))]
        if any(each):
            buckets = list(zip(bounds, map(float, accumulate(each)), strict=True))
            made.add_metric([shard], buckets, numbers.get(timed.sum, 0) / timed.per_s)
    return made
