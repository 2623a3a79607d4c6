"""Make rates out of counters that only grow: by the second, over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.admin.observe.record import HOTTEST, BatchRecord, NodeRecord, ReadCount, TableRecord, stopped_in
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.counts import APPLIED, BATCH_MS, BATCHES, REJECTED, quantile

#: Rates are taken over so many seconds: readers send their counts once a second, and batches come in bursts.
SPAN_S = 10.0


class Window:
    """Counters of the last seconds; a counter that has shrunk was forgotten by Redis, and begins anew."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, at_s: float, counts: Mapping[str, int]) -> None:
        """Take a reading.

        Args:
            at_s: when it was read, by this process's steady clock.
            counts: each counter's value.
        """
        self._taken.append((at_s, counts))
        while len(self._taken) > 2 and at_s - self._taken[1][0] >= SPAN_S:
            self._taken.popleft()

    @property
    def span_s(self) -> float:
        """How long the readings reach back; 0.0 before the second."""
        return self._taken[-1][0] - self._taken[0][0] if self._taken else 0.0

    def grown(self) -> dict[str, int]:
        """Return by how much each counter has grown over the span, without those that have not."""
        (_, first), (_, last) = self._taken[0], self._taken[-1]
        steps = {name: n - first.get(name, 0) for name, n in last.items()}
        return {name: last[name] if step < 0 else step for name, step in steps.items() if step}


def batch_of(window: Window) -> BatchRecord | None:
    """Return the transactions of the span; None before the second reading.

    Args:
        window: of a shard's counters.
    """
    if not window.span_s:
        return None
    grown = window.grown()
    batches = grown.get(BATCHES, 0)
    ops = sum(n for name, n in grown.items() if name.startswith(f"{APPLIED} "))
    took = {name.partition(" ")[2]: n for name, n in grown.items() if name.startswith(f"{BATCH_MS} ")}
    bounds = (quantile(took, 0.5), quantile(took, 0.95))
    # behind the last bound nothing is known
    p50, p95 = (None if bound is None or bound == float("inf") else bound for bound in bounds)
    return BatchRecord(round(batches / window.span_s, 2), round(ops / batches, 1) if batches else 0.0, p50, p95)


def tables_of(window: Window, counts: Mapping[str, int], waits: Iterable[WaitReason]) -> tuple[TableRecord, ...]:
    """Return the hottest tables, and before them those that are stopped.

    Args:
        window: of a shard's counters.
        counts: the newest of these.
        waits: what is stopped on the shard, or waits.
    """
    rates: dict[str, float] = {}
    for name, n in window.grown().items() if window.span_s else ():
        what, _, labels = name.partition(" ")
        if what == APPLIED:
            table = labels.partition(" ")[2]
            rates[table] = rates.get(table, 0.0) + n / window.span_s
    refused = {name.partition(" ")[2]: n for name, n in counts.items() if name.startswith(f"{REJECTED} ")}
    known = {name.split(" ", 2)[2] for name in counts if name.startswith(f"{APPLIED} ")} | refused.keys()
    stopped = {scope: reason.sentence() for scope, reason in stopped_in(waits).items()}
    order = sorted(known, key=lambda table: (table not in stopped, -rates.get(table, 0.0), table))
    measured = window.span_s > 0
    return tuple(
        TableRecord(
            table, round(rates.get(table, 0.0), 1) if measured else None, refused.get(table, 0), stopped.get(table)
        )
        for table in order[:HOTTEST]
    )


def counters_of(reads: Iterable[ReadCount]) -> dict[str, int]:
    """Return how many reads each node has served, since the count began.

    Args:
        reads: of all processes.
    """
    served: dict[str, int] = {}
    for one in reads:
        if one.kind != "error":
            served[one.node] = served.get(one.node, 0) + one.reads
    return served


def with_reads(nodes: Sequence[NodeRecord], window: Window) -> list[NodeRecord]:
    """Return nodes with their reads a second, and their shares of the reads of them all; None for what is not known.

    Args:
        nodes: of one shard.
        window: of the reads by node.
    """
    if not window.span_s:
        return list(nodes)
    grown = window.grown()
    total = sum(grown.get(node.node, 0) for node in nodes)
    found = []
    for node in nodes:
        reads = grown.get(node.node, 0)
        share = round(reads / total, 3) if total else None
        found.append(replace(node, reads_per_s=round(reads / window.span_s, 1), reads_share=share))
    return found
