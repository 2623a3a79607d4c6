"""The host's reserve of row ids: a producer number leased in advance, for processes that find Redis away.

Invariant: a millisecond of the reserve is given to one process only, and that is on the disk before an id is made.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from pipeline import clock
from pipeline.errors import IdsUsedUp
from pipeline.model.ids import EPOCH_MS, SPAN_MS, Lease
from pipeline.per_process import PerProcess
from pipeline.spool.sqlite_file import DRAINING_ROOM, SpoolFile
from pipeline.spool.turns import HostLock

#: How far the reserve reaches, and how much of it must be left at least, ms.
REACH_MS, LEAST_MS = 86_400_000, 43_200_000
#: What a process gets at a time, ms: its ids run ahead of the clock by that, times the processes that ask.
SLICE_MS = 1_000

#: Leases a number for a host: token, lease so far, least `until_ms`.
HostLease = Callable[[str, Lease | None, int], Lease]


class _Held(NamedTuple):
    token: str
    number: int
    used_ms: int
    until_ms: int


class IdReserve:
    """The reserve in a spool's file.

    Args:
        file: the spool's.
        lock: held by the one process that leases.
    """

    def __init__(self, file: SpoolFile, lock: PerProcess[HostLock]):
        self._file, self._lock = file, lock
        self._full_until_ms = 0  # until then nobody need look
        self._doubted = False

    def doubt(self) -> None:
        """Let the next refill ask Redis: it may have forgotten whose the number is."""
        self._full_until_ms, self._doubted = 0, True

    def refill(self, lease: HostLease) -> None:
        """See that the reserve reaches far enough. Costs nothing but once in half a day.

        One process of the host leases at a time, since there are few numbers for hosts; the others go on without. The
        file is not locked meanwhile: Redis may hang, and ops have to be spooled.
        """
        now = clock.wall_ms() - EPOCH_MS
        if now + LEAST_MS < self._full_until_ms:
            return
        held = self._read()
        if held is None or self._doubted or held.until_ms <= now + LEAST_MS:
            with self._lock().tried() as mine:
                if not mine:
                    return
                token, before = _own(self._read())
                held = self._keep(token, lease(token, before, now + REACH_MS))
        self._full_until_ms, self._doubted = held.until_ms, False

    def lease(self, least_until_ms: int) -> Lease:
        """Give a slice of the reserve to this process; see `contract.Numbers.lease_ids` for *least_until_ms*.

        Raises:
            IdsUsedUp: there is no reserve, or it does not reach so far.
        """
        wanted = least_until_ms - SPAN_MS
        with self._file.writing(room=DRAINING_ROOM) as db:
            held = _held(db)
            if held is None:
                raise IdsUsedUp("this host has never reached Redis before, so it has no ids in reserve")
            end = max(held.used_ms, wanted) + SLICE_MS
            if end > held.until_ms:
                raise IdsUsedUp("the ids that this host had in reserve are used up")
            db.execute("UPDATE reserve SET used_ms = ?", (end,))
        return Lease(held.number, held.used_ms, end)

    def _read(self) -> _Held | None:
        with self._file.reading() as db:
            return _held(db)

    def _keep(self, token: str, new: Lease) -> _Held:
        """Note a lease; meanwhile others may have used more of the one before."""
        with self._file.writing(room=DRAINING_ROOM) as db:
            held = _held(db)
            kept = _Held(token, new.number, new.after_ms, new.until_ms)
            if held is not None and held.number == new.number:
                kept = kept._replace(used_ms=max(held.used_ms, new.after_ms), until_ms=max(held.until_ms, new.until_ms))
            db.execute("INSERT OR REPLACE INTO reserve VALUES (1, ?, ?, ?, ?)", kept)
        return kept


def _own(held: _Held | None) -> tuple[str, Lease | None]:
    """Return the host's token, and its lease so far."""
    if held is None:
        return os.urandom(8).hex(), None
    return held.token, Lease(held.number, held.used_ms, held.until_ms)


def _held(db: sqlite3.Connection) -> _Held | None:
    row = db.execute("SELECT token, number, used_ms, until_ms FROM reserve").fetchone()
    return _Held(*row) if row else None
