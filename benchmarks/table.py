"""Create, empty and count the table of a run on all primaries, and wait until it is full."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymysql

from benchmarks.rows import PURCHASE, Shape
from benchmarks.target import Target

#: The largest share of the time that polls may take: a count scans the table, and must not slow what it counts.
_POLL_SHARE = 0.2
_POLL_FIRST_S = 0.05
#: How long the servers' estimates of the number of rows are believed, s, and the time between two of them, s.
_ESTIMATED_S, _ESTIMATE_S = 1.0, 0.025
#: So many estimates that are alike say that no more rows come.
_ALIKE = 3


class NotDrained(Exception):
    """Rows were missing, or too many, when the time was over."""


class Table:
    """A run's table on every primary, seen through connections of its own."""

    def __init__(self, target: Target, shape: Shape = PURCHASE):
        self._shape = shape
        self._connections: list[pymysql.Connection[Any]] = [target.connect(n) for n in range(len(target.primaries))]

    def create(self) -> None:
        """Create the table wherever it is missing."""
        self._everywhere(self._shape.create)

    def empty(self) -> None:
        """Remove all rows."""
        self._everywhere(f"TRUNCATE TABLE {self._shape.table}")

    def count(self) -> int:
        """Return the number of committed rows on all primaries."""
        return sum(int(answer) for answer in self._everywhere(f"SELECT COUNT(*) FROM {self._shape.table}"))

    def last_id(self) -> int:
        """Return the highest id on any primary, without a scan; 0 when empty."""
        return max(int(answer or 0) for answer in self._everywhere(f"SELECT MAX(id) FROM {self._shape.table}"))

    def has(self, row_id: int) -> bool:
        """Return whether a row with this id is committed on any primary."""
        return any(self._everywhere(f"SELECT 1 FROM {self._shape.table} WHERE id = {int(row_id)}"))

    def drained_at(self, rows: int, timeout_s: float) -> float:
        """Wait for *rows* rows and return the moment (`perf_counter`) at which the last count began.

        Raises:
            NotDrained: rows were still missing after *timeout_s*, or there are more than were sent.
        """
        deadline = time.perf_counter() + timeout_s
        wanted, before = rows, -1
        while True:
            estimated = self._wait_for_about(wanted)
            asked = time.perf_counter()
            found = self.count()
            if found == rows:
                return asked
            if found > rows:
                raise NotDrained(
                    f"{found:,} rows were committed, but only {rows:,} sent: some were applied twice, or were left over"
                )
            if asked > deadline:
                raise NotDrained(f"{found:,} of {rows:,} rows were committed after {timeout_s:.0f} s")
            if found == before:
                time.sleep(max(_POLL_FIRST_S, (time.perf_counter() - asked) / _POLL_SHARE))
            wanted, before = estimated + rows - found, found

    def _wait_for_about(self, wanted: int) -> int:
        """Wait until the servers estimate so many rows, or as many several times, a second at most; return how many.

        A count costs the servers CPU. An estimate is a tenth off for good once its server has sampled the table, but
        grows by what is inserted.
        """
        ends, alike, before = time.perf_counter() + _ESTIMATED_S, 1, -1
        while (found := self._estimate()) < wanted and alike < _ALIKE and time.perf_counter() < ends:
            alike = alike + 1 if found == before else 1
            before = found
            time.sleep(_ESTIMATE_S)
        return found

    def _estimate(self) -> int:
        name = f"CONCAT(DATABASE(), '/{self._shape.table}')"
        asked = f"SELECT NUM_ROWS FROM information_schema.INNODB_SYS_TABLESTATS WHERE NAME = {name}"
        return sum(int(found or 0) for found in self._everywhere(asked))

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()

    def _everywhere(self, sql: str) -> list[Any]:
        answers = []
        for connection in self._connections:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                row = cursor.fetchone()
                answers.append(row[0] if row else None)
        return answers


@contextmanager
def open_table(target: Target, shape: Shape = PURCHASE) -> Iterator[Table]:
    """Open the table, created where missing, and close it at the end."""
    table = Table(target, shape)
    try:
        table.create()
        yield table
    finally:
        table.close()
