"""Ids that this host has promised under idempotency keys, each before anybody was told or asked.

Invariant: a key stands for one id in all processes of the host, whatever becomes of Redis between two calls. A promise
is no op: it stays when its request fails, and the next one with that key gets its id. It need not outlive a power cut,
so it costs no fsync.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline import clock
from pipeline.spool.sqlite_file import DRAINING_ROOM, SpoolFile

#: As long as Redis keeps an idempotency key, ms.
KEPT_MS = 86_400_000
#: The newest are kept: so many, and no more than one per so many bytes of the spool's room. A key takes up to 1.7 kB.
MOST, ROOM_BYTES = 10_000, 10_000


class Promise(NamedTuple):
    """An id that a row will have, and the key it is found again by."""

    bucket: int
    key: str
    row_id: int


class Promises:
    """The promises in a spool's file."""

    def __init__(self, file: SpoolFile, max_bytes: int):
        self._file, self._most = file, min(MOST, max_bytes // ROOM_BYTES)

    def made(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that was promised under a key; promise *row_id* where none was.

        Raises:
            PipelineFull, SpoolUnavailable: none was, and none is.
        """
        now = clock.wall_ms()
        found, where = "SELECT row_id FROM promises", "bucket = ? AND key = ?"
        with self._file.reading() as db:
            before = db.execute(f"{found} WHERE {where} AND made_ms > ?", (bucket, key, now - KEPT_MS)).fetchone()
        if before is not None:
            return int(before[0])
        with self._file.writing(synced=False) as db:
            db.execute("DELETE FROM promises WHERE nth <= (SELECT MAX(nth) FROM promises) - ?", (self._most - 1,))
            db.execute(f"DELETE FROM promises WHERE {where} AND made_ms <= ?", (bucket, key, now - KEPT_MS))
            insert = "INSERT INTO promises (bucket, key, row_id, made_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
            db.execute(insert, (bucket, key, row_id, now))
            return int(db.execute(f"{found} WHERE {where}", (bucket, key)).fetchone()[0])

    def corrected(self, bucket: int, key: str, row_id: int) -> None:
        """Let a key stand for another id: Redis says so, since another host was first."""
        with self._file.writing(synced=False) as db:
            db.execute("UPDATE promises SET row_id = ? WHERE bucket = ? AND key = ?", (row_id, bucket, key))

    def tell(self, bucket: int, key: str) -> None:
        """Let Redis be told of a promise before ops are drained: it may not know the key of one that is spooled."""
        with self._file.writing(synced=False) as db:
            db.execute("UPDATE promises SET told = 0 WHERE bucket = ? AND key = ?", (bucket, key))

    def untold(self) -> list[Promise]:
        """Return those that Redis is to be told of."""
        query = "SELECT bucket, key, row_id FROM promises WHERE told = 0 ORDER BY nth"
        with self._file.reading() as db:
            return [Promise(*row) for row in db.execute(query)]

    def told(self, promises: Iterable[Promise]) -> None:
        """Note that Redis has been told."""
        update = "UPDATE promises SET told = 1 WHERE bucket = ? AND key = ?"
        with self._file.writing(room=DRAINING_ROOM) as db:
            db.executemany(update, [(one.bucket, one.key) for one in promises])
