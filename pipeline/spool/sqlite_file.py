"""The spool's file: one connection per process, anew after a fork, threads one after the other, errors as ours.

A lock of the host: one process at a time does something, and it dies with its process.

A POSIX record lock, since a child that forks off does not inherit it; the lock does not distinguish threads, so a
second lock does. Its file is opened once per process and never closed: to close any descriptor of it would end the
lock.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from weakref import WeakSet

from pipeline.errors import PipelineFull, SpoolUnavailable

#: How long a write waits for those of other processes, s; each takes about as long as one fsync.
BUSY_S = 2.0
#: Room above the limit in which an op that has been sent may be marked so: also a full spool must drain.
DRAINING_ROOM = 1.25
#: The data are the application's: for its user and group only.
MODE = 0o660


class SpoolFile:
    """A SQLite file of which every commit is on the disk when it returns."""

    _room: float
    _page_bytes: int

    def __init__(self, path: Path, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        self._left_behind: list[sqlite3.Connection] = []  # a parent's: to close them here could end its locks
        self._db: sqlite3.Connection | None = None
        self._reset()
        _files.add(self)

    @property
    def there(self) -> bool:
        """Whether the file has been made."""
        return self.path.exists()

    @contextmanager
    def writing(self, *, room: float = 1.0) -> Iterator[sqlite3.Connection]:
        """Give a write transaction: committed and fsynced at the end, or not at all.

        Args:
            room: the limit's multiple that the file may grow to.

        Raises:
            PipelineFull: the file is at its limit, or its disk is full.
            SpoolUnavailable: it cannot be used.
        """
        with self._one_at_a_time(), self._translated():
            db = self._connected()
            if room != self._room:
                db.execute(f"PRAGMA max_page_count = {int(self._max_bytes * room) // self._page_bytes}")
                self._room = room
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for queries."""
        with self._one_at_a_time(), self._translated():
            yield self._connected()

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

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._pid != os.getpid():
            if self._db is not None:
                self._left_behind.append(self._db)
            self._reset()
        with self._lock:
            yield

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._db = None
        self._room = 0.0
        self._page_bytes = 4096
        self._inode = 0

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and self._is_the_file():
            return self._db
        if self._db is not None:
            self._db.close()  # somebody has removed or replaced the file
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, MODE))
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'secret'").fetchone():
            sql = (files("pipeline.spool") / "tables.sql").read_text(encoding="utf-8")
            db.executescript(f"BEGIN IMMEDIATE;\n{sql}\nCOMMIT;")
        self._page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
        self._db, self._room, self._inode = db, 0.0, os.stat(self.path).st_ino
        return db

    def _is_the_file(self) -> bool:
        try:
            return os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                limit = f"[spool] max_mb = {self._max_bytes // 1_000_000}"
                raise PipelineFull(f"the spool {self.path} is at {limit}, or its disk is full") from error
            raise SpoolUnavailable(self.path, str(error)) from error
        except OSError as error:
            raise SpoolUnavailable(self.path, error.strerror or str(error)) from error


#: All files of this process. SQLite's locks do not survive a fork (sqlite.org/howtocorrupt.html, 2.6): when a
#: connection was left open, children of the test suite died of it.
_files: WeakSet[SpoolFile] = WeakSet()
_forking: list[SpoolFile] = []


def _before_fork() -> None:
    _forking[:] = _files
    for file in _forking:
        file.before_fork()


def _after_fork(in_child: bool) -> None:
    for file in _forking:
        file.after_fork(in_child)
    _forking.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(in_child=False),
    after_in_child=lambda: _after_fork(in_child=True),
)


class HostLock:
    """A lock of one process of this host, for one thread of it. Callers try the lock and never wait for it.

    One object per process and file: the system's lock belongs to the process, and so do the threads' lock and the
    file. Keep it in a `PerProcess`.

    Args:
        path: the lock's file, made at the first try.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._threads = path, -1, threading.Lock()

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Take the lock if it is free; yield whether it was."""
        if not self._threads.acquire(blocking=False):
            yield False
            return
        try:
            if not self._taken():
                yield False
                return
            try:
                yield True
            finally:
                fcntl.lockf(self._opened(), fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _taken(self) -> bool:
        try:
            fcntl.lockf(self._opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _opened(self) -> int:
        if self._file < 0:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, MODE)
        return self._file
