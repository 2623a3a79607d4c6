"""Ids that this host has promised under idempotency keys while Redis was away.

Invariant: a key stands for one id as long as its promise is here, in all processes of the host. A promise is no op: it
stays when its request fails, and the next one with that key gets its id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline import clock
from pipeline.log.spool.file import DRAINING_ROOM, SpoolFile

#: As long as Redis keeps an idempotency key, ms.
KEPT_MS = 86_400_000
#: Of so many keys the newest are kept: about 3 MB of the spool's room.
MOST = 10_000


class Promise(NamedTuple):
    """An id that a row will have, and the key it is found again by."""

    bucket: int
    key: str
    row_id: int


class Promises:
    """The promises in a spool's file."""

    def __init__(self, file: SpoolFile):
        self._file = file

    def found(self, bucket: int, key: str) -> int | None:
        """Return the id that was promised under a key; makes no file."""
        if not self._file.there:
            return None
        query = "SELECT row_id FROM promises WHERE bucket = ? AND key = ? AND made_ms > ?"
        with self._file.reading() as db:
            row = db.execute(query, (bucket, key, clock.wall_ms() - KEPT_MS)).fetchone()
        return int(row[0]) if row else None

    def made(self, bucket: int, key: str, row_id: int) -> int:
        """Return the id that was promised under a key; promise *row_id* where none was.

        Raises:
            PipelineFull, SpoolUnavailable: none was, and none is.
        """
        before = self.found(bucket, key)
        if before is not None:
            return before
        now = clock.wall_ms()
        with self._file.writing() as db:
            db.execute("DELETE FROM promises WHERE made_ms <= ?", (now - KEPT_MS,))
            db.execute("DELETE FROM promises WHERE nth <= (SELECT MAX(nth) FROM promises) - ?", (MOST - 1,))
            insert = "INSERT INTO promises (bucket, key, row_id, made_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
            db.execute(insert, (bucket, key, row_id, now))
            query = "SELECT row_id FROM promises WHERE bucket = ? AND key = ?"
            return int(db.execute(query, (bucket, key)).fetchone()[0])

    def untold(self) -> list[Promise]:
        """Return those that Redis has not been told of."""
        query = "SELECT bucket, key, row_id FROM promises WHERE told = 0 AND made_ms > ? ORDER BY nth"
        with self._file.reading() as db:
            return [Promise(*row) for row in db.execute(query, (clock.wall_ms() - KEPT_MS,))]

    def told(self, promises: Iterable[Promise]) -> None:
        """Note that Redis has been told; they stay, for a process may still think that it is away."""
        update = "UPDATE promises SET told = 1 WHERE bucket = ? AND key = ?"
        with self._file.writing(room=DRAINING_ROOM) as db:
            db.executemany(update, [(one.bucket, one.key) for one in promises])
