"""Keep the ops in the spool: taken in order, numbered for good, sent, forgotten. Keep the host's reserve of row ids.

The host's reserve of row ids: a block of each bucket's counters, for processes that find Redis away.
Invariant: a counter of the reserve is given to one process only, and that is on the disk before an id is made.

Invariant: while an op waits to be sent, the marker file is there. The file is made before the op is committed, and is
removed only inside a transaction that sees none waiting. So every process of the host knows where ops go by
one check for a file. An op that comes for the marker's sake alone checks again once nobody else writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from pipeline import clock
from pipeline.errors import IdsUsedUp, SpoolUnavailable, Unavailable, WrongDeployment
from pipeline.model import new_producer
from pipeline.model.fingerprint import Fingerprint, placed_otherwise
from pipeline.per_process import PerProcess
from pipeline.spool.sqlite_file import DRAINING_ROOM, SpoolFile
from pipeline.spool.turns import GroupCommit, HostLock, host_lock

#: A reserve that is older is replaced, ms: rows that are inserted while Redis is away sort as if they were so old.
RENEW_MS = 3_600_000
#: A bucket that idled longer goes on under another producer: Redis forgets one after two days, a shard after seven.
FRESH_MS = 86_400_000
#: A producer is given to further buckets for half of that.
SHARED_MS = FRESH_MS // 2
#: Ops and bytes that one look takes.
HEAD_OPS, HEAD_BYTES = 1000, 4_000_000
#: A spool drains if ops began to wait, or some were sent, in the last seconds: a large one takes a second on a busy
#: machine. Where Redis is away for longer, nobody counts on that.
DRAINS_S = 2.0
#: What is said of ops that another configuration has placed, or would place, elsewhere.
ASTRAY = (
    "{ops} ops in the spool {path} were placed by another configuration: {fault}; send them by that one, with "
    "`pipeline spool drain --config`, or move the spool's files aside and give up what is in there"
)
REFUSED = "{fault}; the spool {path} takes ops by the configuration only that was compared with the deployment last"
#: The producer of a run, and its first sequence.
Number = tuple[int, int]
# one text for all buckets: SQLite need not be told it anew, which took longer than to do it
_MOVE = (
    "UPDATE buckets SET next = next + ?, used_ms = ? WHERE bucket = ?"
    " AND (used_ms > ? OR EXISTS (SELECT 1 FROM entries WHERE bucket = ?)) RETURNING producer, next - ?"
)
# an op that is sent again under its number is in here already, or not
_INSERT = "INSERT OR IGNORE INTO entries (bucket, producer, seq, kept, payload) VALUES (?, ?, ?, ?, ?)"


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


class Spooled(NamedTuple):
    """One op in the spool."""

    id: int
    bucket: int
    producer: int
    seq: int
    payload: bytes


class Definition(NamedTuple):
    """A table definition, and whether Redis has never had it."""

    hash: str
    table: str
    text: str
    waits: bool


class Counts(NamedTuple):
    """What is in a spool."""

    waiting: int
    kept: int
    bytes: int


class Spool:
    """One host's spool, shared by its processes and threads. The file is made when it is first needed.

    Args:
        path: of the file.
        max_bytes: how large the file may grow.
        placing: of this process's configuration; None where ops are neither made nor sent.
    """

    def __init__(self, path: Path, max_bytes: int, placing: Fingerprint | None = None):
        self.path = path
        self._placing = placing.placing if placing else None
        self._compared: tuple[str, dict[str, str]] = "", {}  # a noted fingerprint, and what it places otherwise
        self.file = SpoolFile(path, max_bytes)
        self.reserve = IdReserve(self.file)
        #: Threads of one process share an fsync.
        self._together = PerProcess(lambda: GroupCommit(self._take_in))

    def lock(self) -> HostLock:
        """Return the lock that is held by the one process that drains."""
        return host_lock(Path(f"{self.path}.lock"))

    def waiting(self) -> bool:
        """Whether ops wait to be sent: then all others have to go behind them. About a microsecond."""
        return self.file.marked

    def drains(self) -> bool:
        """Whether ops wait, and may soon be sent: Redis has not been away for long. About two microseconds."""
        return self.file.marked_within(DRAINS_S)

    def add(
        self,
        runs: Mapping[int, Sequence[bytes]],
        *,
        kept: bool = False,
        numbered: Mapping[int, Number] | None = None,
        behind: bool = False,
    ) -> dict[int, Number]:
        """Take ops in, fsynced when it returns; return each bucket's producer and first sequence.

        Args:
            kept: whether they stay until they are forgotten by `forget`.
            numbered: buckets whose ops were sent already, perhaps in vain, and under which number.
            behind: take them in only behind others that wait; where none does any more, nothing is returned.

        Raises:
            PipelineFull, SpoolUnavailable: none was taken in, but for those that are `numbered`.
            WrongDeployment: none was taken in: the configuration places ops otherwise than what was compared last.
        """
        wish = _Wish(runs, int(kept), numbered or {}, behind)
        self._together().done(wish)
        if wish.error is not None:
            if isinstance(wish.error, Unavailable):
                error = wish.error.for_caller()  # other callers may have the same
                error.numbered = wish.numbers if wish.committed else {}  # others may send what a failing disk took
                raise error from wish.error
            raise wish.error
        if not wish.taken:
            return {}
        return {bucket: wish.numbers[bucket] for bucket in runs} if numbered else wish.numbers

    def agree(self, deployment: Fingerprint | None) -> None:
        """Note how the deployment places ops, which this process's configuration fits: so this host does from now on.

        Args:
            deployment: its fingerprint, as it was compared last; None: it was not yet, and nothing is noted.

        Raises:
            SpoolUnavailable: the file cannot be used.
            WrongDeployment: ops are in here that another configuration has placed elsewhere; nothing was noted.
        """
        if deployment is None or self._placing is None:
            return
        mine = replace(deployment.placing, source=self._placing.source)
        with self.file.reading() as db:
            if mine == Fingerprint.noted(_agreed(db)):
                return
        with self.file.writing(room=DRAINING_ROOM) as db:
            for table, fault in placed_otherwise(mine, Fingerprint.noted(_agreed(db))).items():
                of_table = "SELECT COUNT(*) FROM entries WHERE instr(payload, ?)"
                if ops := db.execute(of_table, (_named(table),)).fetchone()[0]:
                    raise WrongDeployment([ASTRAY.format(ops=ops, path=self.path, fault=fault)])
            db.execute("INSERT OR REPLACE INTO agreed VALUES (1, ?)", (mine.to_json(),))

    def buckets(self) -> list[int]:
        """Return the buckets of all ops in here."""
        with self.file.reading() as db:
            return [row[0] for row in db.execute("SELECT DISTINCT bucket FROM entries")]

    def head(self, buckets: Iterable[int] | None = None, most: int = HEAD_OPS) -> list[Spooled]:
        """Return the first ops of these buckets, or of all, that wait to be sent; they are on the disk.

        Else their numbers could be given again after a power failure, while Redis already knows them.
        """
        found: list[Spooled] = []
        some = f"AND bucket IN ({_list(buckets)})" if buckets is not None else ""
        # put in order by their ids alone: with its ops, SQLite would read the whole file for each look
        first = f"SELECT id FROM entries WHERE sent = 0 {some} ORDER BY id LIMIT {most}"
        with self.file.reading() as db:
            query = f"SELECT id, bucket, producer, seq, payload FROM entries WHERE id IN ({first}) ORDER BY id"
            size_bytes = 0
            for row in db.execute(query):
                found.append(Spooled(*row))
                size_bytes += len(row[4])
                if size_bytes >= HEAD_BYTES:
                    break
        if found:
            self.file.sync()
        return found

    def sent(self, ops: Iterable[Spooled], epoch: int) -> None:
        """Note that Redis has these ops, under *epoch*."""
        ids = [op.id for op in ops]
        with self.file.writing(room=DRAINING_ROOM, synced=False) as db:
            db.executemany("DELETE FROM entries WHERE id = ? AND kept = 0", ((id,) for id in ids))
            db.executemany("UPDATE entries SET sent = ? WHERE id = ?", ((epoch, id) for id in ids))
        self.file.note_sent()

    def renew(self, buckets: Iterable[int], epoch: int) -> int:
        """Let everything wait again that was sent under another epoch: Redis may have lost it. Return how many."""
        some = f"bucket IN ({_list(buckets)}) AND sent NOT IN (0, {epoch})"
        with self.file.reading() as db:
            if not db.execute(f"SELECT 1 FROM entries WHERE {some} LIMIT 1").fetchone():
                return 0
        with self.file.writing(room=DRAINING_ROOM, synced=False) as db:
            self.file.mark()
            return db.execute(f"UPDATE entries SET sent = 0 WHERE {some}").rowcount

    def settle(self) -> bool:
        """Remove the marker if nothing waits; whether nothing does."""
        with self.file.writing(room=DRAINING_ROOM, synced=False) as db:
            waiting = "SELECT 1 FROM entries WHERE sent = 0 UNION ALL SELECT 1 FROM definitions WHERE waits LIMIT 1"
            if db.execute(waiting).fetchone():
                self.file.mark()
                return False
            self.file.unmark()
            return True

    def pairs(self) -> list[tuple[int, int]]:
        """Return the (bucket, producer) of all ops that Redis has and that are kept."""
        with self.file.reading() as db:
            return db.execute("SELECT DISTINCT bucket, producer FROM entries WHERE sent > 0").fetchall()

    def forget(self, reached: Mapping[tuple[int, int], int]) -> int:
        """Delete kept ops up to a sequence of each (bucket, producer); return how many."""
        rows = [(bucket, producer, seq) for (bucket, producer), seq in reached.items()]
        where = "bucket = ? AND producer = ? AND seq <= ? AND sent > 0"
        with self.file.writing(room=DRAINING_ROOM, synced=False) as db:
            return db.executemany(f"DELETE FROM entries WHERE {where}", rows).rowcount

    def holds(self, bucket: int, producer: int, seq: int) -> bool:
        """Whether this op waits in here to be sent."""
        if not self.waiting():
            return False
        where = "bucket = ? AND producer = ? AND seq = ? AND sent = 0"
        with self.file.reading() as db:
            return bool(db.execute(f"SELECT 1 FROM entries WHERE {where}", (bucket, producer, seq)).fetchone())

    def keeps(self, bucket: int, producer: int, up_to: int) -> bool:
        """Whether an op of a producer up to a sequence is in here: it is sent, or may be sent again."""
        if not self.file.there:
            return False
        where = "bucket = ? AND producer = ? AND seq <= ?"
        with self.file.reading() as db:
            found = db.execute(f"SELECT 1 FROM entries WHERE {where} LIMIT 1", (bucket, producer, up_to))
            return found.fetchone() is not None

    def counts(self) -> Counts:
        """Return what is in here."""
        if not self.file.there:
            return Counts(0, 0, 0)
        with self.file.reading() as db:
            sums = ("sent = 0", "sent > 0", "LENGTH(payload)")
            wanted = ", ".join(f"COALESCE(SUM({one}), 0)" for one in sums)
            return Counts(*db.execute(f"SELECT {wanted} FROM entries").fetchone())

    def keep_definitions(self, definitions: Iterable[tuple[str, str, str]], *, wait: bool) -> None:
        """Keep table definitions: hash, table, text.

        Args:
            wait: Redis has never had them: until they are published, no op may overtake them.
        """
        with self.file.writing() as db:
            insert = f"INSERT INTO definitions VALUES (?, ?, ?, {int(wait)}) ON CONFLICT (hash) DO NOTHING"
            db.executemany(insert, definitions)
            if wait:
                self.file.mark()

    def definitions(self) -> list[Definition]:
        """Return the definitions that were kept."""
        with self.file.reading() as db:
            found = db.execute("SELECT hash, table_name, text, waits FROM definitions ORDER BY rowid")
            return [Definition(hash, table, text, bool(waits)) for hash, table, text, waits in found]

    def published(self, hashes: Iterable[str]) -> None:
        """Note that Redis has these definitions."""
        with self.file.writing(room=DRAINING_ROOM, synced=False) as db:
            db.executemany("UPDATE definitions SET waits = 0 WHERE hash = ?", ((hash,) for hash in hashes))

    def secret(self) -> str | None:
        """Return the secret that was kept."""
        with self.file.reading() as db:
            found = db.execute("SELECT text FROM secret").fetchone()
        return str(found[0]) if found else None

    def keep_secret(self, text: str) -> None:
        """Keep the deployment's secret."""
        with self.file.writing(room=DRAINING_ROOM) as db:
            db.execute("INSERT OR REPLACE INTO secret VALUES (1, ?)", (text,))

    def close(self) -> None:
        """Close this process's connection."""
        self.file.close()

    def _take_in(self, wishes: Sequence[_Wish]) -> None:
        """Take in what some threads wish, with one fsync for all; each alone where one of them may be what fails."""
        begun = committed = False
        try:
            with self.file.writing(synced=False) as db:
                begun, marked = True, self.waiting()
                if marked or not all(wish.behind for wish in wishes):
                    wishes = self._rightly_placed(db, wishes)
                    if wishes and not marked:
                        self.file.mark()
                    for wish in wishes:
                        wish.insert(db)
            committed = True
            self.file.sync()
        except BaseException as error:
            alone = len(wishes) > 1 and begun and not committed and isinstance(error, Exception)
            for wish in wishes:
                if alone:
                    wish.taken = False
                    self._take_in([wish])
                else:
                    wish.error, wish.committed = error, committed

    def _rightly_placed(self, db: sqlite3.Cursor, wishes: Sequence[_Wish]) -> Sequence[_Wish]:
        """Return the wishes without those that have a new op which the configuration compared last places elsewhere."""
        if self._placing is None:
            return wishes
        if (text := _agreed(db)) != self._compared[0]:
            self._compared = text, placed_otherwise(self._placing, Fingerprint.noted(text))
        if not self._compared[1]:
            return wishes
        for wish in wishes:
            new = [op for bucket, ops in wish.runs.items() if bucket not in wish.given for op in ops]
            for table, fault in self._compared[1].items():
                if any(_named(table) in op for op in new):
                    wish.error = WrongDeployment([REFUSED.format(path=self.path, fault=fault)])
        return [wish for wish in wishes if wish.error is None]


@dataclass(slots=True)
class _Wish:
    """What one caller wants to be taken in, and what became of it."""

    runs: Mapping[int, Sequence[bytes]]
    kept: int  # a bool would be converted for each row
    given: Mapping[int, Number]
    behind: bool
    numbers: dict[int, Number] = field(default_factory=dict)
    taken: bool = False
    committed: bool = False
    error: BaseException | None = None

    def insert(self, db: sqlite3.Cursor) -> None:
        """Number the ops and insert them."""
        self.taken, self.numbers = True, (numbers := dict(self.given))
        for bucket, payloads in self.runs.items():
            if bucket not in numbers:
                numbers[bucket] = _next(db, bucket, len(payloads))
            producer, first = numbers[bucket]
            if len(payloads) == 1:
                db.execute(_INSERT, (bucket, producer, first, self.kept, payloads[0]))
            else:
                rows = ((bucket, producer, first + nth, self.kept, payload) for nth, payload in enumerate(payloads))
                db.executemany(_INSERT, rows)


def _next(db: sqlite3.Cursor, bucket: int, count: int) -> Number:
    """Give out the next sequences of a bucket."""
    now = clock.wall_ms()
    row = db.execute(_MOVE, (count, now, bucket, now - FRESH_MS, bucket, count)).fetchone()
    if row is not None:
        return row[0], row[1]
    producer = _producer(db, bucket, now)
    db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?)", (bucket, producer, 1 + count, now))
    return producer, 1


def _producer(db: sqlite3.Cursor, bucket: int, now: int) -> int:
    """Return a producer that this bucket has never had: the newest, or a new one."""
    newest = db.execute("SELECT producer, made_ms FROM producers ORDER BY nth DESC LIMIT 1").fetchone()
    before = db.execute(f"SELECT producer FROM buckets WHERE bucket = {bucket}").fetchone()
    if newest and abs(now - newest[1]) < SHARED_MS and (before is None or before[0] != newest[0]):
        return int(newest[0])
    producer = new_producer(kept=True)
    db.execute("INSERT INTO producers (producer, made_ms) VALUES (?, ?)", (producer, now))
    return producer


def _agreed(db: sqlite3.Connection | sqlite3.Cursor) -> str:
    """Return the fingerprint that was compared last on this host, as text; none yet: an empty one."""
    found = db.execute("SELECT text FROM agreed").fetchone()
    return str(found[0]) if found else ""


def _named(table: str) -> bytes:
    """Return what is in each op of a table, and seldom in another; of no table, what is in all."""
    return f'"{table}"'.encode() if table else b""


def _list(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


class NullSpool:
    """What `store.Spool` and its reserve of ids say where they hold nothing."""

    __slots__ = ()

    @property
    def reserve(self) -> NullSpool:
        """The reserve: it has no ids."""
        return self

    def take(self, bucket: int, most: int) -> range:
        """Raise `IdsUsedUp`."""
        raise IdsUsedUp("this host keeps no ids in reserve: it has no spool")

    def waiting(self) -> bool:
        """Return False."""
        return False

    def drains(self) -> bool:
        """Return False."""
        return False

    def holds(self, bucket: int, producer: int, seq: int) -> bool:
        """Return False."""
        return False

    def keeps(self, bucket: int, producer: int, up_to: int) -> bool:
        """Return False."""
        return False

    def agree(self, deployment: Fingerprint | None) -> None:
        """Do nothing: no op is taken in."""

    def keep_definitions(self, definitions: Iterable[tuple[str, str, str]], *, wait: bool) -> None:
        """Raise `SpoolUnavailable`."""
        raise SpoolUnavailable("(none)", "it is not enabled")

    def add(
        self,
        runs: Mapping[int, Sequence[bytes]],
        *,
        kept: bool = False,
        numbered: Mapping[int, Number] | None = None,
        behind: bool = False,
    ) -> dict[int, Number]:
        """Raise `SpoolUnavailable`."""
        raise SpoolUnavailable("(none)", "it is not enabled")
