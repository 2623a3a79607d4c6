"""Open the spool's file: one connection per process, anew after a fork; one writer of the host at a time.

A file that somebody has removed is made anew, and what waited in it is taken from the connection that is still open.
A damaged file is moved aside, and what can be read of it goes on.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from weakref import WeakSet

from pipeline import clock
from pipeline.errors import PipelineFull, SpoolUnavailable
from pipeline.spool.turns import BESIDE, HostLock, host_lock, moved_aside, open_private, refuse_planted, take_over

#: How long a write waits for those of other processes, s; each takes about as long as one fsync.
BUSY_S = 2.0
#: Room above the limit in which an op that has been sent may be marked so: also a full spool must drain.
DRAINING_ROOM = 1.25
#: A disk with less room than that is full, bytes.
NO_ROOM_BYTES = 1_000_000
#: The codes of SQLite that mean that the file is no spool, or is one no more.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Journal:
    """The journal of a connection, open for as long as a thread may sync it: another may close the connection."""

    __slots__ = ("file",)

    def __init__(self, file: int):
        self.file = file

    def __del__(self) -> None:
        os.close(self.file)


class _Translated:
    """Raises errors of SQLite and of the system as ours; a function with a `yield` takes ten times as long for it."""

    __slots__ = ("_file",)

    def __init__(self, file: SpoolFile):
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (sqlite3.Error, OSError)):
            raise self._file.as_ours(error) from error


class SpoolFile:
    """A SQLite file, and its journal."""

    def __init__(self, path: Path, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        self._left_behind: list[sqlite3.Connection] = []  # a parent's: to close them here could end its locks
        self._marker, self._where = f"{path}.waiting", str(path)
        self._reset()
        _files.add(self)

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._own_turn: HostLock | None = None
        self._db: sqlite3.Connection | None = None
        self._journal: _Journal | None = None
        self._room = 0.0
        self._inode = self._damaged = 0

    def _turn(self) -> HostLock:
        """Return this process's lock for writing."""
        if self._own_turn is None:
            self._own_turn = host_lock(Path(f"{self.path}.turn"))
        return self._own_turn

    @property
    def there(self) -> bool:
        """Whether the file has been made."""
        return self.path.exists()

    @property
    def marked(self) -> bool:
        """Whether the marker is there: ops wait. About a microsecond."""
        return os.access(self._marker, os.F_OK)

    def mark(self) -> None:
        """Make the marker, also for after a power failure; call this before the commit of what waits."""
        if self.marked:
            return
        os.close(open_private(Path(self._marker), self.path))
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def unmark(self) -> None:
        """Remove the marker; call this while nobody else may write."""
        Path(self._marker).unlink(missing_ok=True)

    def note_sent(self) -> None:
        """Note, for all processes, that ops which waited were sent just now: by the marker's time."""
        with suppress(OSError):  # removed meanwhile, or somebody else's: then nobody waits for the others
            os.utime(self._marker)

    def marked_within(self, seconds: float) -> bool:
        """Whether ops wait, and the first of them came, or others were sent, in the last seconds.

        Args:
            seconds: how many.
        """
        try:
            return clock.wall_ms() - 1000 * os.stat(self._marker).st_mtime < 1000 * seconds
        except FileNotFoundError:
            return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other thread and no other process write for as long as the block lasts; the block itself may.

        Raises:
            SpoolUnavailable: another process does not give its turn back, or the file cannot be used.
        """
        with self._one_at_a_time(), _Translated(self), self._turn().held(BUSY_S):
            yield

    @contextmanager
    def writing(self, *, room: float = 1.0, synced: bool = True) -> Iterator[sqlite3.Cursor]:
        """Give a write transaction: committed at the end, or not at all.

        Its turn ends with the commit, before the sync: so the syncs of processes that come together are one for the
        disk. Whoever sends what others have committed calls `sync` before.

        Args:
            room: the limit's multiple that the file may grow to.
            synced: whether it is on the disk when the block has ended.

        Raises:
            PipelineFull: the file is at its limit, or its disk is full.
            SpoolUnavailable: it cannot be used.
        """
        with self._one_at_a_time(), _Translated(self), self._turn().held(BUSY_S):
            db = self._connected().cursor()  # one for all statements: each takes a microsecond to make
            if room != self._room:
                [page_bytes] = db.execute("PRAGMA page_size").fetchone()
                db.execute(f"PRAGMA max_page_count = {int(self._max_bytes * room) // page_bytes}")
                self._room = room
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.connection.in_transaction:
                    db.execute("ROLLBACK")
                raise
        if synced:
            self.sync()

    def sync(self) -> None:
        """Return once everything that was committed so far is on the disk.

        Raises:
            SpoolUnavailable: it is not known whether it is.
        """
        if (journal := self._journal) is not None:
            try:
                os.fdatasync(journal.file)
            except OSError as error:
                raise self.as_ours(error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for queries."""
        with self._one_at_a_time(), _Translated(self):
            yield self._connected()

    def shed(self) -> None:
        """Empty the journal, where what was deleted could still be read, unless somebody uses it just now."""
        with self.alone():
            db = self._connected()
            db.execute("PRAGMA busy_timeout = 0")
            try:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")

    def close(self) -> None:
        """Close this process's connection."""
        with self._one_at_a_time():
            self._disconnect()

    def before_fork(self) -> None:
        """Let no thread be inside SQLite, and no connection be open: a child must inherit neither."""
        self._lock.acquire()
        if self._pid == os.getpid():
            self._disconnect()

    def after_fork(self, in_child: bool) -> None:
        """Go on: in the parent as before, in the child from the beginning."""
        if in_child:
            self._reset()
        else:
            self._lock.release()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def _one_at_a_time(self) -> AbstractContextManager[bool]:
        """Return this process's lock among threads; a child forked without Python's hooks begins anew."""
        if self._pid != os.getpid():
            if self._db is not None:
                self._left_behind.append(self._db)
            self._reset()
        return self._lock

    # the connection -----------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and self._inode == self._inode_there():
            return self._db
        with self._turn().held(BUSY_S):
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Connect, while no other process writes, makes or moves the file."""
        old, self._db = self._db, None  # of a file that somebody has removed or replaced
        if self._damaged == self._inode_there():
            old = moved_aside(self.path)
        try:
            db, journal = self._opened()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise
            if not self.marked and not os.path.exists(f"{self.path}.lock"):  # never a file of somebody else
                raise SpoolUnavailable(self.path, f"it is no spool ({error})", "give another [spool] path") from error
            old, (db, journal) = moved_aside(self.path), self._opened()
        self._db, self._journal = db, journal
        self._room, self._inode, self._damaged = 0.0, self._inode_there(), 0
        if old is not None:
            take_over(old, db, self.path)
        if db.execute("SELECT 1 FROM entries WHERE sent = 0 LIMIT 1").fetchone():
            self.mark()  # a power failure may have taken the marker
        return db

    def _opened(self) -> tuple[sqlite3.Connection, _Journal | None]:
        if not self.there:  # SQLite must not take what was beside the old one for the new one's
            for suffix in BESIDE:
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        os.close(open_private(self.path, self.path))
        refuse_planted([Path(f"{self.path}{suffix}") for suffix in (*BESIDE, "-journal")], self.path)
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            [mode] = db.execute("PRAGMA journal_mode = WAL").fetchone()
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA secure_delete = ON")  # what was sent, or replaced, is overwritten
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'agreed'").fetchone():
                sql = (files("pipeline.spool") / "tables.sql").read_text(encoding="utf-8")
                [own] = db.execute("PRAGMA user_version").fetchone()
                own = own or int.from_bytes(os.urandom(4), "big") >> 1
                db.executescript(f"BEGIN IMMEDIATE;\nPRAGMA user_version = {own};\n{sql}\nCOMMIT;")
            # on a disk that cannot have this journal SQLite syncs the file itself
            journal = _Journal(os.open(f"{self.path}-wal", os.O_RDONLY)) if mode == "wal" else None
        except BaseException:
            db.close()
            raise
        return db, journal

    def _inode_there(self) -> int:
        try:
            return os.stat(self._where).st_ino
        except FileNotFoundError:
            return -1

    # errors -------------------------------------------------------------------------------------------------

    def as_ours(self, error: sqlite3.Error | OSError) -> PipelineFull | SpoolUnavailable:
        """Return our error for one of SQLite's or of the system's."""
        if isinstance(error, sqlite3.Error):
            return self._judged(error)
        if isinstance(error, TimeoutError):
            why = f"another process has kept its turn for {BUSY_S:.0f} s"
            return SpoolUnavailable(self.path, why, f"see which with `fuser {self.path}.turn`, and end it")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._no_room()
        return SpoolUnavailable(self.path, error.strerror or str(error))

    def _judged(self, error: sqlite3.Error) -> PipelineFull | SpoolUnavailable:
        """Return our error for one of SQLite's; the next call connects anew where that may help."""
        code = _code(error)
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._free_bytes() < NO_ROOM_BYTES):
            return self._no_room()
        if code == sqlite3.SQLITE_BUSY:
            why = f"a program that is not of the pipeline has locked it for {BUSY_S:.0f} s"
            return SpoolUnavailable(self.path, why, f"see which with `fuser {self.path}`, and end it")
        self._disconnect()
        if code in _DAMAGED:
            self._damaged = self._inode
            return SpoolUnavailable(self.path, f"it is damaged ({error})", "the next call moves it aside: try again")
        return SpoolUnavailable(self.path, str(error))

    def _no_room(self) -> PipelineFull:
        if self._free_bytes() < NO_ROOM_BYTES:
            return PipelineFull(f"the disk of the spool {self.path} is full; make room on it")
        limit = f"[spool] max_mb = {self._max_bytes // 1_000_000}"
        return PipelineFull(f"the spool {self.path} is at {limit}; see why Redis takes nothing, or give it more")

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


#: All files of this process. SQLite's locks do not survive a fork (sqlite.org/howtocorrupt.html, 2.6): when a
#: connection was left open, children of the test suite died of it.
_files: WeakSet[SpoolFile] = WeakSet()
_forking: list[SpoolFile] = []


def _before_fork() -> None:
    _forking[:] = _files
    for file in _forking:
        file.before_fork()


def _after_fork(in_child: bool) -> None:
    while _forking:
        _forking.pop().after_fork(in_child)


os.register_at_fork(
    before=_before_fork, after_in_parent=lambda: _after_fork(False), after_in_child=lambda: _after_fork(True)
)
