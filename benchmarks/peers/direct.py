"""Run peers with no queue: a pyDAL insert and commit per row in the caller, and `executemany` as the limit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peer import Enqueue
from benchmarks.rows import COLUMNS, TABLE, Row
from benchmarks.target import Target

#: Rows per statement and per commit. PyMySQL splits a statement at 1,024,000 bytes; this is well below.
STATEMENT_ROWS = 1000
INSERT = f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"


@contextmanager
def insert_and_commit(target: Target) -> Iterator[Enqueue]:
    """Yield a function that inserts and commits row by row."""
    dals = target.open_dals()

    def enqueue(rows: Sequence[Row]) -> None:
        for row in rows:
            db = dals[row["customer"] % len(dals)]
            db.purchase.insert(**row)
            db.commit()

    try:
        yield enqueue
    finally:
        for db in dals:
            db.close()


@contextmanager
def executemany(target: Target) -> Iterator[Enqueue]:
    """Yield a function that writes with one process per shard, which a fork starts: no row is copied or pickled."""
    fork = multiprocessing.get_context("fork")

    def enqueue(rows: Sequence[Row]) -> None:
        shards = range(len(target.primaries))
        writers = [fork.Process(target=_write_shard, args=(target, shard, rows), daemon=True) for shard in shards]
        try:
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
        finally:
            for writer in writers:
                writer.terminate()

    yield enqueue


def _write_shard(target: Target, shard: int, rows: Sequence[Row]) -> None:
    connection = target.connect(shard)
    mine = [tuple(row.values()) for row in rows if row["customer"] % len(target.primaries) == shard]
    with connection.cursor() as cursor:
        for first in range(0, len(mine), STATEMENT_ROWS):
            cursor.executemany(INSERT, mine[first : first + STATEMENT_ROWS])
    connection.close()
