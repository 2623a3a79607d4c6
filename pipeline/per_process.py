"""Keep what each process has of its own: a value that a forked child makes anew, names, and random numbers.

uWSGI and gunicorn fork after import. A child that goes on with its parent's socket, lock or thread corrupts or blocks
both. uWSGI does not run the hooks of `os.register_at_fork`. So each use compares the process id.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from itertools import count
from types import new_class
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Holds one value per process; all threads of a process get the same one.

    Args:
        make: returns a new value. It may run twice at once in two threads; one of the values is dropped unused.
    """

    __slots__ = ("_held", "_make")

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._held: dict[int, T] = {}

    def __call__(self) -> T:
        """Return this process's value, made at its first use."""
        pid = os.getpid()
        try:
            return self._held[pid]
        except KeyError:
            return self._made(pid)

    def made(self) -> T | None:
        """Return this process's value, or None where none was made: a fork has nothing of its parent to close."""
        return self._held.get(os.getpid())

    def _made(self, pid: int) -> T:
        # setdefault is atomic: two threads that come first at once get one value
        value = self._held.setdefault(pid, self._make())
        for other in set(self._held) - {pid}:
            self._held.pop(other, None)
        return value


class _OwnNames:
    """Under which names a thread keeps an adapter's connection and cursor.

    pyDAL's names are the adapter's address in memory. Another adapter has that address once this one is gone, and would
    take a connection that a thread has left of it: to another database.
    """

    number: int

    @property
    def _connection_uname_(self) -> str:
        return f"_pipeline_connection_{self.number}_{os.getpid()}"

    @property
    def _cursors_uname_(self) -> str:
        return f"_pipeline_cursor_{self.number}_{os.getpid()}"


@cache
def with_own_names(adapter: type) -> Any:
    """Return a kind of pyDAL's adapter whose connections no other adapter takes; each needs one of the `numbers`.

    Args:
        adapter: the kind that pyDAL has made.
    """
    return new_class(adapter.__name__, (_OwnNames, adapter))


#: Numbers that no two adapters of a process share.
numbers = count(1)
#: Draws at random. An application that has seeded Python's own generator, or a tool that watches it, meets no draw of
#: ours.
chance = random.Random()
# as Python's own: a forked child goes its own way
os.register_at_fork(after_in_child=chance.seed)
