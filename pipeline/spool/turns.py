"""Turns: who may write to the spool's file. Threads share a commit; processes go one after the other.

Threads that come while another one's commit is on its way to the disk share the next. One thread at a time leads. It
commits the writes of every thread queued so far, in arrival order, and wakes them. Then the first thread that queued
during the commit leads. A thread waits for the commit under way and for its own, and for no other.

A host's lock belongs to one process at a time, and dies with its process. It is a POSIX record lock, since a child that
forks off does not inherit it; the lock does not distinguish threads, so a second lock does. Its file is opened once per
process and never closed: to close any descriptor of it would end the lock.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pipeline import clock
from pipeline.errors import SpoolUnavailable
from pipeline.per_process import PerProcess, chance
from pipeline.spool.private_files import open_private

#: How often a process tries a lock before it queues for it, and the pause between two tries, s.
TRIES, TRY_S = 20, 0.001
Commit = TypeVar("Commit")


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

    def done(self, wish: Commit) -> None:
        """Return once a wish has been done, by this thread or by another."""
        turn = _Turn(wish)
        with self._mutex:
            self._waiting.append(turn)
            turn.leads, self._led = not self._led, True
        if not turn.leads:
            turn.gate.acquire()
        if turn.leads:
            self._lead(turn)

    def _lead(self, own: _Turn[Commit]) -> None:
        with self._mutex:
            taken, self._waiting = self._waiting, []
        try:
            self._do([turn.wish for turn in taken])
        finally:
            self._hand_over()
            for turn in taken:
                if turn is not own:
                    turn.gate.release()

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

    def __init__(self, wish: Commit):
        self.wish, self.leads = wish, False
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
            with self._kept():
                yield True
        finally:
            self._threads.release()

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """Hold the lock; a thread that has it already goes on at once.

        Raises:
            TimeoutError: another process has not given it back in time.
        """
        if not self._threads.acquire(timeout=timeout_s):
            raise TimeoutError
        try:
            if not self._depth and not self._taken():
                self._queue(timeout_s)
            with self._kept():
                yield
        finally:
            self._threads.release()

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
            else:  # nobody waits for it any more
                fcntl.lockf(self._file, fcntl.LOCK_UN)
        except (OSError, SpoolUnavailable) as error:
            turn.set_exception(error)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

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


#: Of this process: two objects for one file would not exclude each other, since the system's lock is the process's.
_locks: PerProcess[dict[Path, HostLock]] = PerProcess(dict)


def host_lock(path: Path) -> HostLock:
    """Return this process's lock for a file."""
    return _locks().setdefault(path, HostLock(path))
