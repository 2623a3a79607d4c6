"""Run peers with no queue: a pyDAL insert and commit per row in the caller; as limits `executemany` and LOAD DATA."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.peer import Enqueue
from benchmarks.rows import PURCHASE, Row, Shape
from benchmarks.target import Target

#: Rows per statement and per commit. PyMySQL splits a statement at 1,024,000 bytes; this is well below.
STATEMENT_ROWS = 1000
#: Rows per LOAD DATA and per commit.
LOAD_ROWS = 10_000


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


Write = Callable[[Any, Shape, list[tuple[Any, ...]]], None]


def executemany(shape: Shape = PURCHASE) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer that writes with PyMySQL's `executemany`."""
    return _peer(shape, _execute_many)


def load_data(shape: Shape = PURCHASE) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return the peer that writes with LOAD DATA LOCAL, from a file that it has made."""
    return _peer(shape, _load)


def _peer(shape: Shape, write: Write) -> Callable[[Target], AbstractContextManager[Enqueue]]:
    """Return a peer that writes with one process per shard, which a fork starts: no row is copied or pickled."""
    fork = multiprocessing.get_context("fork")

    @contextmanager
    def open_peer(target: Target) -> Iterator[Enqueue]:
        def enqueue(rows: Sequence[Row]) -> None:
            shards = range(len(target.primaries))
            writers = [
                fork.Process(target=_write_shard, args=(target, shard, rows, shape, write), daemon=True)
                for shard in shards
            ]
            try:
                for writer in writers:
                    writer.start()
                for writer in writers:
                    writer.join()
            finally:
                for writer in writers:
                    writer.terminate()

        yield enqueue

    return open_peer


def _write_shard(target: Target, shard: int, rows: Sequence[Row], shape: Shape, write: Write) -> None:
    with target.connect(shard) as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL local_infile = 1")  # servers of ours are started without
    connection = target.connect(shard, local_infile=True)
    mine = [tuple(row.values()) for row in rows if row["customer"] % len(target.primaries) == shard]
    with connection.cursor() as cursor:
        write(cursor, shape, mine)
    connection.close()


def _execute_many(cursor: Any, shape: Shape, rows: list[tuple[Any, ...]]) -> None:
    for first in range(0, len(rows), STATEMENT_ROWS):
        cursor.executemany(shape.insert, rows[first : first + STATEMENT_ROWS])


def _load(cursor: Any, shape: Shape, rows: list[tuple[Any, ...]]) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        for first in range(0, len(rows), LOAD_ROWS):
            file.seek(0)
            file.truncate()
            file.writelines("\t".join(map(str, row)) + "\n" for row in rows[first : first + LOAD_ROWS])
            file.flush()
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE {shape.table} CHARACTER SET utf8mb4"
                f" ({', '.join(shape.types)})"
            )
