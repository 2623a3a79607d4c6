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
#: How long the servers' estimates of the number of rows are believed, s, and the share from which on rows are counted.
_ESTIMATED_S, _NEAR = 1.0, 0.95


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
        while True:
            self._wait_for_about(rows)
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
            time.sleep(max(_POLL_FIRST_S, (time.perf_counter() - asked) / _POLL_SHARE))

    def _wait_for_about(self, rows: int) -> None:
        """Wait until the servers' own estimates are near a number of rows, a second at most: a count costs them CPU."""
        ends = time.perf_counter() + _ESTIMATED_S
        while self._estimate() < _NEAR * rows and time.perf_counter() < ends:
            time.sleep(_POLL_FIRST_S)

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
