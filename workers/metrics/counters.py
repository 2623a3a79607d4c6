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
    ENQUEUE_BOUNDS_MS,
    ENQUEUE_MS,
    ENQUEUE_SUM_US,
    ENQUEUED,
    HELD,
    PARKED,
    REFUSED,
    REJECTED,
    SEEN,
)

#: By shard and labels.
_Numbers = dict[str, dict[str, int]]
#: How many tables of a shard are told apart; the others are one, `OTHER`.
MOST_TABLES, OTHER = 20, "other"


class Counted(NamedTuple):
    """A counter: what it is called, what it counts, and the labels that follow its first word."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Duration(NamedTuple):
    """A histogram: the first word of its sums' counters, how many of their units are a second, and its own labels."""

    name: str
    help: str
    sum: str
    per_s: int
    bounds_ms: tuple[float, ...] = BOUNDS_MS
    labels: tuple[str, ...] = ()


#: By the first word of a counter.
COUNTERS = {
    ENQUEUED: Counted("ops_enqueued", "Ops that processes enqueued, by the way they took.", ("way", "kind", "table")),
    REFUSED: Counted(
        "ops_refused", "Ops that no process could enqueue, by what was not there.", ("reason", "kind", "table")
    ),
    APPLIED: Counted("ops_applied", "Ops whose effects were committed.", ("kind", "table")),
    REJECTED: Counted("ops_rejected", "Ops that the database refused for good.", ("table",)),
    PARKED: Counted("ops_parked", "Ops set aside behind a refused op, or because their table is stopped."),
    SEEN: Counted("ops_seen", "Ops that the shard had already: they were sent again, and dropped."),
    HELD: Counted("buckets_held", "How often a batch left a bucket waiting, by the reason's kind.", ("kind",)),
}
HISTOGRAMS = {
    BATCH_MS: Duration("batch_seconds", "Time of a batch's transaction.", BATCH_SUM_MS, 1000),
    COMMIT_MS: Duration("commit_seconds", "Time of a batch's COMMIT.", COMMIT_SUM_US, 1_000_000),
    ENQUEUE_MS: Duration(
        "enqueue_seconds",
        "Time until the log or the spool had a call's ops.",
        ENQUEUE_SUM_US,
        1_000_000,
        ENQUEUE_BOUNDS_MS,
        ("way",),
    ),
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
    words = _by_word(counts)
    for word, counted in COUNTERS.items():
        yield _counter(counted, words.get(word, {}), prefix, tables)
    for word, timed in HISTOGRAMS.items():
        yield _histogram(timed, words.get(word, {}), words.get(timed.sum, {}), prefix)


def _by_word(counts: Mapping[str, Mapping[str, int]]) -> dict[str, _Numbers]:
    """Return the counters by their first word, and by shard; what is left of a name are its labels."""
    found: dict[str, _Numbers] = {}
    for shard, numbers in counts.items():
        for name, number in numbers.items():
            word, _, labels = name.partition(" ")
            found.setdefault(word, {}).setdefault(shard, {})[labels] = number
    return found


def _counter(counted: Counted, numbers: _Numbers, prefix: str, tables: Tables) -> Metric:
    made = CounterMetricFamily(prefix + counted.name, counted.help, labels=("shard", *counted.labels))
    by_table = counted.labels[-1:] == ("table",)
    for shard, each in numbers.items():
        found: dict[tuple[str, ...], int] = {}
        for text in sorted(each, key=each.__getitem__, reverse=True):  # the busiest tables come first
            labels = text.split(" ", len(counted.labels) - 1) if counted.labels else []
            if by_table:
                labels[-1] = tables.label(shard, labels[-1])
            key = (shard, *labels)
            found[key] = found.get(key, 0) + each[text]
        for key, number in found.items():
            made.add_metric(key, number)
    return made


def _histogram(timed: Duration, numbers: _Numbers, sums: _Numbers, prefix: str) -> Metric:
    made = HistogramMetricFamily(prefix + timed.name, timed.help, labels=("shard", *timed.labels))
    bounds = {f"{ms:g}": str(ms / 1000) for ms in timed.bounds_ms} | {"inf": "+Inf"}
    for shard, each in numbers.items():
        found: dict[str, dict[str, int]] = {}
        for text, number in each.items():
            labels, _, bound = text.rpartition(" ")
            found.setdefault(labels, {})[bound] = number
        for labels, counted in found.items():
            up_to = accumulate(float(counted.get(bound, 0)) for bound in bounds)
            total = sums.get(shard, {}).get(labels, 0) / timed.per_s
            made.add_metric([shard, *labels.split()], list(zip(bounds.values(), up_to, strict=True)), total)
    return made
