"""Count in a worker's pool processes, for its main process to read: memory that forked processes share.

Each pool process has a page of its own and is its only writer, so no lock is held and none is left behind by a process
that was killed. Celery gives a new pool process the number of one that ended: it goes on with that one's page, and no
number ever falls.
"""

from __future__ import annotations

import logging
import mmap
import struct
import threading
from collections.abc import Iterator

from pipeline.events import Event

#: The size of one page, bytes; the kernel gives memory to what is used of it. A shard takes up to 10 kB.
PAGE = 1 << 19
#: What stands before a number: the length of its name, 0 where the page ends. Numbers stand at multiples of 8.
_HEAD, _NUMBER = struct.Struct("<Q"), struct.Struct("<d")
#: Between the parts of a name; a table's name cannot hold it.
_BETWEEN = "\x1f"
logger = logging.getLogger("pipeline.metrics")

#: A metric's name, and the values of its labels.
Name = tuple[str, ...]


class Tally:
    """The pages of all pool processes. Make it before they are forked.

    Args:
        pages: how many processes there can be at once.
    """

    def __init__(self, pages: int):
        self._pages, self._memory = pages, mmap.mmap(-1, pages * PAGE)

    def page(self, number: int) -> Page | None:
        """Return the page of a process; None where there are more processes than pages.

        Args:
            number: of the process in its pool, from 0.
        """
        if number >= self._pages:
            logger.warning(Event("process_not_counted", process=number, why="the pool began smaller"))
            return None
        return Page(self._memory, number * PAGE)

    def totals(self) -> dict[Name, float]:
        """Return the sums of all pages."""
        found: dict[Name, float] = {}
        for number in range(self._pages):
            for name, _, value in _read(self._memory, number * PAGE):
                found[name] = found.get(name, 0.0) + value
        return found


class Page:
    """The numbers of one process, which is their only writer.

    Args:
        memory: of all pages.
        start: where this page begins.
    """

    def __init__(self, memory: mmap.mmap, start: int):
        self._memory, self._end = memory, start + PAGE
        self._known: dict[Name, tuple[int, float]] = {}
        self._next = start
        self._writing = threading.Lock()  # a pool of threads is one process
        for name, at, value in _read(memory, start):
            self._known[name] = at, value
            self._next = at + _NUMBER.size

    def add(self, name: Name, by: float = 1.0) -> None:
        """Add to a number; one that is new begins at 0.

        Args:
            name: the metric's name, and the values of its labels.
            by: how much, 0 or more.
        """
        with self._writing:
            at, value = self._known.get(name) or self._new(name)
            if at:
                self._known[name] = at, value + by
                _NUMBER.pack_into(self._memory, at, value + by)

    def _new(self, name: Name) -> tuple[int, float]:
        """Return where a new number stands; 0 where the page is full, and the number is not kept."""
        text = _BETWEEN.join(name).encode()
        size = len(text) + -len(text) % 8
        at = self._next + _HEAD.size + size
        if at + _NUMBER.size + _HEAD.size > self._end:
            logger.warning(Event("metric_not_counted", metric=name, why="there is no room"))
            self._known[name] = found = 0, 0.0
            return found
        _NUMBER.pack_into(self._memory, at, 0.0)
        self._memory[self._next + _HEAD.size : at] = text.ljust(size, b"\0")
        _HEAD.pack_into(self._memory, self._next, len(text))  # last: a reader sees all of it, or nothing
        self._next = at + _NUMBER.size
        return at, 0.0


def _read(memory: mmap.mmap, start: int) -> Iterator[tuple[Name, int, float]]:
    """Yield the name, the place and the value of each number of a page."""
    at = start
    while at + _HEAD.size <= start + PAGE and (length := _HEAD.unpack_from(memory, at)[0]):
        text, at = at + _HEAD.size, at + _HEAD.size + length + -length % 8
        yield tuple(memory[text : text + length].decode().split(_BETWEEN)), at, _NUMBER.unpack_from(memory, at)[0]
        at += _NUMBER.size
