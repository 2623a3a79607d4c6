"""Decide who may write to the spool's file, and when: never a stranger; threads share a commit, processes take turns.

Open the spool's files: never through a link, never a stranger's; and rescue what a removed or damaged file holds. The
folder says who shares a spool. Where the folder's group may write, as web processes and workers of two users need, the
group may write each file, too. Else only the owner may. Ops wait in there, and the secret that signs tokens.

Threads that come while another one's commit is on its way to the disk share the next. One thread at a time leads. The
leader commits the writes of every thread queued so far, in arrival order, and wakes them. Then the first thread that
queued during the commit leads. A thread waits for the commit under way and for its own, and for no other. Who leads
waits a moment for those that shared the last commit: they come again one after the other.

A host's lock belongs to one process at a time, and ends with its process. The lock is a POSIX record lock, since a
child that forks off does not inherit it. The lock does not distinguish threads, so a second lock does. The lock's file
is opened once per process and never closed: to close any descriptor of it would end the lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from pipeline import clock
from pipeline.errors import SpoolUnavailable
from pipeline.events import Event
from pipeline.owners import user
from pipeline.per_process import PerProcess, chance

#: A file's modes: its owner's alone, or shared with its group.
OWN, SHARED = 0o600, 0o660
#: What SQLite writes beside the file, by the end of its name.
BESIDE = ("-wal", "-shm")
#: What a removed or damaged file has that nothing else has, by table. Its numbers are never given again.
_RESCUED = {
    "definitions": "hash, table_name, text, waits",
    "entries": "bucket, producer, seq, kept, sent, payload",
    "agreed": "one, text",
}
logger = logging.getLogger("pipeline.spool")
#: How often a process tries a lock before it queues for it, and the pause between two tries, s.
TRIES, TRY_S = 20, 0.001
#: How long a thread that leads waits at most for those that shared the last commit, s; half of that commit at most.
#: Without that 16 threads' commits were of 16 ops and of one in turn: twice as many syncs.
EARLY_S = 0.005
Commit = TypeVar("Commit")
#: Of this process: two objects for one file would not exclude each other, since the system's lock is the process's.
_locks: PerProcess[dict[Path, HostLock]] = PerProcess(dict)


def open_private(path: Path, spool: Path) -> int:
    """Open a file of a spool to read and write, make it where it is missing, and return its descriptor.

    Args:
        path: the file.
        spool: the spool's own file, for errors.

    Raises:
        SpoolUnavailable: somebody else may write the folder, or has made the file.
        OSError: it cannot be opened.
    """
    if fault := folder_fault(spool):
        raise SpoolUnavailable(spool, *fault)
    folder = os.stat(path.parent)
    mode = SHARED if folder.st_mode & stat.S_IWGRP else OWN
    try:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _planted(spool, path, "is a link, or no file") from error
        raise
    try:
        found = os.fstat(file)
        _refuse_file(path, found, folder, spool)
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(file, mode)  # whatever the umask of this process is
    except BaseException:
        os.close(file)
        raise
    return file


def refuse_planted(paths: list[Path], spool: Path) -> None:
    """Refuse what SQLite would follow or share: links, and files of somebody else.

    Args:
        paths: files that SQLite opens by their names; missing ones are no fault.
        spool: the spool's own file.

    Raises:
        SpoolUnavailable: one of them is such.
    """
    folder = os.stat(spool.parent)
    for path in paths:
        try:
            _refuse_file(path, os.lstat(path), folder, spool)
        except FileNotFoundError:
            continue


def folder_fault(spool: Path) -> tuple[str, str] | None:
    """Return why a folder is not safe for a spool, and the cure; None where it is.

    Args:
        spool: the spool's own file; its folder is there.
    """
    found, me = os.stat(spool.parent), os.geteuid()
    if found.st_mode & stat.S_IWOTH:
        return f"every user of this machine may write in {spool.parent}", _of_its_own(me)
    shared = bool(found.st_mode & stat.S_IWGRP)
    if me == 0 and found.st_uid != 0:
        owner = user(found.st_uid)
        return f"{spool.parent} is of {owner}, who could lead root astray", f"run this as {owner}: sudo -u, or su"
    if found.st_uid not in (0, me) and not (shared and found.st_gid in {os.getegid(), *os.getgroups()}):
        return f"{spool.parent} is of {user(found.st_uid)}, and this is {user(me)}", _of_its_own(me)
    return None


def _of_its_own(me: int) -> str:
    """Return the cure of a folder; a worker asks for faults once a second, and a name is read from a file each time."""
    return (
        f"give it a folder of its own: `install -d -m 0700 -o {_name(me)} /var/lib/pipeline` (-m 2770 and -g where a "
        'group shares it), and write [spool] path = "/var/lib/pipeline/pipeline.spool"'
    )


def _refuse_file(path: Path, found: os.stat_result, folder: os.stat_result, spool: Path) -> None:
    """Refuse what somebody put in the file's place."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _planted(spool, path, "is a link, or no file")
    if found.st_mode & stat.S_IWOTH:
        raise _planted(spool, path, "may be written by every user")
    if found.st_uid not in (0, os.geteuid(), folder.st_uid) and not folder.st_mode & stat.S_IWGRP:
        raise _planted(spool, path, f"is of {user(found.st_uid)}")


def _planted(spool: Path, path: Path, what: str) -> SpoolUnavailable:
    cure = "see who made it and take it away; let only the spool's users write in its folder"
    return SpoolUnavailable(spool, f"{path} {what}", cure)


def _name(number: int) -> str:
    return user(number).removeprefix("user ")


def moved_aside(path: Path) -> sqlite3.Connection:
    """Move a damaged file aside for good, and return a connection to it.

    Args:
        path: the file.
    """
    aside = f"{path}.damaged-{clock.wall_ms()}"
    for suffix in ("", *BESIDE):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    logger.error(Event("spool_damaged", path=path, moved_to=aside, text="a new one takes its place"))
    return sqlite3.connect(f"file:{quote(aside)}?mode=ro", uri=True, isolation_level=None)


def take_over(old: sqlite3.Connection, new: sqlite3.Connection, path: Path) -> None:
    """Take over what another file holds, as far as it can be read; close the connection to it.

    One process does, at once: later would double. To send an op again is harmless for as long as Redis or the shard
    know its number.

    Args:
        old: to the other file.
        new: to the file that takes its place.
        path: of that file.
    """
    taken = 0
    try:
        [own] = old.execute("PRAGMA user_version").fetchone()
        new.execute("BEGIN IMMEDIATE")
        if new.execute("INSERT OR IGNORE INTO rescued VALUES (?)", (own,)).rowcount:
            for table, columns in _RESCUED.items():
                for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY rowid"):
                    marks = ", ".join("?" * len(row))
                    sql = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
                    taken += new.execute(sql, row).rowcount
    except sqlite3.Error as error:
        logger.error(Event("spool_not_recovered", path=path, error=error, text="not all of the spool could be read"))
    finally:
        if new.in_transaction:
            new.execute("COMMIT")
        old.close()
    logger.warning(Event("spool_recovered", path=path, rows=taken))


class GroupCommit(Generic[Commit]):
    """Does the wishes of all threads, those that come together at once.

    Args:
        do: does some wishes; must not raise, but note in each what became of it.
    """

    def __init__(self, do: Callable[[Sequence[Commit]], None]):
        self._do = do
        self._mutex = threading.Lock()
        self._waiting: list[_Turn[Commit]] = []
        self._led = False
        #: How many shared the last commit and how long it took, s; the leader that waits until as many have come.
        self._shared, self._took_s = 1, 0.0
        self._early: _Turn[Commit] | None = None

    def done(self, wish: Commit) -> None:
        """Return once a wish has been done, by this thread or by another."""
        turn = _Turn(wish)
        with self._mutex:
            self._waiting.append(turn)
            turn.leads, self._led = not self._led, True
            if not turn.leads:
                turn.shut()
            if self._early is not None and len(self._waiting) >= self._shared:
                self._early.gate.release()
                self._early = None
        if not turn.leads:
            turn.gate.acquire()
        if turn.leads:
            self._lead(turn)

    def _lead(self, own: _Turn[Commit]) -> None:
        if len(self._waiting) < self._shared:
            self._wait_for_others(own)
        with self._mutex:
            self._early = None
            taken, self._waiting = self._waiting, []
        began_s = clock.mono_s()
        try:
            self._do([turn.wish for turn in taken])
        finally:
            self._shared, self._took_s = len(taken), clock.mono_s() - began_s
            self._hand_over()
            for turn in taken:
                if turn is not own:
                    turn.gate.release()

    def _wait_for_others(self, own: _Turn[Commit]) -> None:
        """Wait a moment for as many as shared the last commit: the first of them comes again before the others."""
        with self._mutex:
            if len(self._waiting) >= self._shared:
                return
            own.shut()
            self._early = own
        own.gate.acquire(timeout=min(EARLY_S, self._took_s / 2))

    def _hand_over(self) -> None:
        with self._mutex:
            heir = self._waiting[0] if self._waiting else None
            self._led = heir is not None
        if heir is not None:
            heir.leads = True
            heir.gate.release()


class _Turn(Generic[Commit]):
    """One thread's wish, and the gate at which it waits."""

    __slots__ = ("gate", "leads", "wish")

    gate: threading.Lock

    def __init__(self, wish: Commit):
        self.wish, self.leads = wish, False

    def shut(self) -> None:
        """Shut the gate, before anybody may open it."""
        self.gate = threading.Lock()
        self.gate.acquire()


class HostLock:
    """A lock of one process of this host, and of one thread of it; see `host_lock`.

    Args:
        path: the lock's file, made at the first try.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._threads, self._depth = path, -1, threading.RLock(), 0

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Take the lock if it is free; yield whether it was."""
        if not self._threads.acquire(blocking=False):
            yield False
            return
        try:
            if self._depth or not self._free():
                yield False
                return
            self._depth = 1
            try:
                yield True
            finally:
                self._give_back()
        finally:
            self._threads.release()

    def held(self, timeout_s: float) -> HostLock:
        """Take the lock, for a `with` block that gives it back; a thread that has it already goes on at once.

        Raises:
            TimeoutError: another process has not given it back in time.
        """
        if not self._threads.acquire(timeout=timeout_s):
            raise TimeoutError
        try:
            if not self._depth and not self._taken():
                self._queue(timeout_s)
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        try:
            self._give_back()
        finally:
            self._threads.release()

    def _give_back(self) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _queue(self, timeout_s: float) -> None:
        """Wait in the system's queue, which is in order of arrival; a thread does, since that queue has no time-out.

        A turn is short, so a few tries come first: on a busy machine each place in the queue costs its thread's start.
        """
        for _ in range(TRIES):
            clock.sleep_s(TRY_S * chance.uniform(0.5, 1.5))
            if self._taken():
                return
        turn: Future[None] = Future()
        threading.Thread(target=self._wait, args=(turn,), name="pipeline-turn", daemon=True).start()
        try:
            turn.result(timeout_s)
        except TimeoutError:
            if turn.cancel():
                raise
            turn.result()

    def _wait(self, turn: Future[None]) -> None:
        try:
            fcntl.lockf(self._opened(), fcntl.LOCK_EX)
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
            else:  # nobody waits for it any more; but the lock is the process's, and may be another thread's by now
                with self._threads:
                    if not self._depth:
                        fcntl.lockf(self._file, fcntl.LOCK_UN)
        except (OSError, SpoolUnavailable) as error:
            turn.set_exception(error)

    def _free(self) -> bool:
        """Whether the lock was free and is taken now; a lock that this process cannot have is never free."""
        try:
            return self._taken()
        except (OSError, SpoolUnavailable):
            return False

    def _taken(self) -> bool:
        file = self._opened()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the system's two words for a lock of another process
            return False
        return True

    def _opened(self) -> int:
        """Return the lock's file, opened anew where somebody has removed it."""
        if self._file < 0 or not os.fstat(self._file).st_nlink:
            self._file = open_private(self._path, self._path.with_suffix(""))
        return self._file


def host_lock(path: Path) -> HostLock:
    """Return this process's lock for a file."""
    return _locks().setdefault(path, HostLock(path))
