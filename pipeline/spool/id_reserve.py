"""The host's reserve of row ids: a block of each bucket's counters, for processes that find Redis away.

Invariant: a counter of the reserve is given to one process only, and that is on the disk before an id is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import clock
from pipeline.errors import IdsUsedUp
from pipeline.spool.sqlite_file import DRAINING_ROOM, SpoolFile
from pipeline.spool.turns import HostLock, host_lock

#: A reserve that is older is replaced, ms: rows that are inserted while Redis is away sort as if they were so old.
RENEW_MS = 3_600_000


class IdReserve:
    """The reserve in a spool's file.

    Args:
        file: the spool's.
    """

    def __init__(self, file: SpoolFile):
        self._file = file

    def lock(self) -> HostLock:
        """Return the lock that is held by the one process of the host that fills the reserve."""
        return host_lock(Path(f"{self._file.path}.reserving"))

    def due(self, bucket: int) -> bool:
        """Return whether a bucket has no reserve, or an old one."""
        with self._file.reading() as db:
            row = db.execute("SELECT made_ms FROM reserved_ids WHERE bucket = ?", (bucket,)).fetchone()
        return row is None or abs(clock.wall_ms() - row[0]) > RENEW_MS

    def keep(self, blocks: Mapping[int, range]) -> None:
        """Keep the block of each bucket in place of the one before."""
        now = clock.wall_ms()
        rows = [(bucket, block.start, block.stop, now) for bucket, block in blocks.items()]
        with self._file.writing(room=DRAINING_ROOM) as db:
            db.executemany("INSERT OR REPLACE INTO reserved_ids VALUES (?, ?, ?, ?)", rows)

    def take(self, bucket: int, most: int) -> range:
        """Give some of a bucket's counters to this process: at least one.

        Raises:
            IdsUsedUp: there are none left.
        """
        with self._file.writing(room=DRAINING_ROOM) as db:
            row = db.execute("SELECT next, stop FROM reserved_ids WHERE bucket = ?", (bucket,)).fetchone()
            if row is None:
                raise IdsUsedUp("this host has never reached Redis before, so it has no ids in reserve")
            begins, stop = row
            if begins >= stop:
                raise IdsUsedUp(f"the ids that this host had in reserve for bucket {bucket} are used up")
            taken = range(begins, min(begins + most, stop))
            db.execute("UPDATE reserved_ids SET next = ? WHERE bucket = ?", (taken.stop, bucket))
        return taken
