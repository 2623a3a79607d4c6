"""A lock of the host: one process at a time does something, and it dies with its process.

A POSIX record lock, since a child that forks off does not inherit it; it does not tell threads apart, so a second lock
does. Its file is opened once per process and never closed: to close any descriptor of it would end the lock.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.spool.sqlite_file import MODE


class HostLock:
    """A lock that is tried, never waited for."""

    _file: int

    def __init__(self, path: Path):
        self._path = path
        self._reset()

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Take the lock if it is free; yield whether it was."""
        if self._pid != os.getpid():
            self._reset()
        threads = self._threads
        if not threads.acquire(blocking=False):
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
            threads.release()

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

    def _reset(self) -> None:
        self._pid, self._threads = os.getpid(), threading.Lock()
        self._file = -1
