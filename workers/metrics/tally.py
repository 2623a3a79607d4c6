"""Count in a worker's pool processes, for its main process to read: memory that forked processes share.

Each pool process has a page of its own and is its only writer. So no lock is held, and a process that was killed leaves
none behind. Celery gives a new pool process the number of one that ended: it goes on with that one's page, and no
number ever falls.
"""

from __future__ import annotations

import logging
import mmap
import struct
import threading
from collections.abc import Iterator, Mapping

from celery.utils.log import current_process_index

from pipeline.apply.transaction import Outcome
from pipeline.events import Event
from pipeline.per_process import PerProcess

#: The size of one page, bytes; the kernel gives memory to what is used of it. A shard takes up to 10 kB.
PAGE = 1 << 19
#: What stands before a number: the length of its name, 0 where the page ends. Numbers stand at multiples of 8.
_HEAD, _NUMBER = struct.Struct("<Q"), struct.Struct("<q")
logger = logging.getLogger("pipeline.metrics")


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

    def totals(self) -> dict[str, dict[str, int]]:
        """Return by shard the sums of all pages, by the counter's name."""
        found: dict[str, dict[str, int]] = {}
        for number in range(self._pages):
            for (shard, _, name), _, value in _read(self._memory, number * PAGE):
                counts = found.setdefault(shard, {})
                counts[name] = counts.get(name, 0) + value
        return found


class Page:
    """The numbers of one process, which is their only writer.

    Args:
        memory: of all pages.
        start: where this page begins.
    """

    def __init__(self, memory: mmap.mmap, start: int):
        self._memory, self._end = memory, start + PAGE
        #: By shard and name: where the number stands, and the number.
        self._known: dict[str, dict[str, tuple[int, int]]] = {}
        self._next, self._full = start, False
        self._writing = threading.Lock()  # a pool of threads is one process
        for (shard, _, name), at, value in _read(memory, start):
            self._known.setdefault(shard, {})[name] = at, value
            self._next = at + _NUMBER.size

    def add(self, shard: str, counts: Mapping[str, int]) -> None:
        """Add to counters; one that is new begins at 0.

        Args:
            shard: the shard's name, which has no blank.
            counts: by the counter's name, how much, 0 or more.
        """
        with self._writing:
            known, write = self._known.setdefault(shard, {}), _NUMBER.pack_into
            for name, by in counts.items():
                at, value = known.get(name) or self._new(f"{shard} {name}")
                if at:
                    known[name] = at, value + by
                    write(self._memory, at, value + by)

    def _new(self, name: str) -> tuple[int, int]:
        """Return where a new number stands; 0 where the page is full, and the number is not shown."""
        text = name.encode()
        size = len(text) + -len(text) % 8
        at = self._next + _HEAD.size + size
        if at + _NUMBER.size + _HEAD.size > self._end:
            if not self._full:  # once: who makes tables without end would fill the log
                logger.warning(Event("metric_not_counted", metric=name, why="there is no room"))
            self._full = True
            return 0, 0
        _NUMBER.pack_into(self._memory, at, 0)
        self._memory[self._next + _HEAD.size : at] = text.ljust(size, b"\0")
        _HEAD.pack_into(self._memory, self._next, len(text))  # last: a reader sees all of it, or nothing
        self._next = at + _NUMBER.size
        return at, 0


def _read(memory: mmap.mmap, start: int) -> Iterator[tuple[tuple[str, str, str], int, int]]:
    """Yield the shard and the name, the place and the value of each counter of a page."""
    at = start
    while at + _HEAD.size <= start + PAGE and (length := _HEAD.unpack_from(memory, at)[0]):
        text, at = at + _HEAD.size, at + _HEAD.size + length + -length % 8
        yield memory[text : text + length].decode().partition(" "), at, _NUMBER.unpack_from(memory, at)[0]
        at += _NUMBER.size


#: Of this worker. Its main process makes it before it forks; None where no metrics are asked for.
tally: Tally | None = None


def _own_page() -> Page | None:
    return None if tally is None else tally.page(current_process_index(0) or 0)


#: This process's page.
page = PerProcess(_own_page)


def count_batch(shard: str, outcome: Outcome) -> None:
    """Count one batch in this process, which applies it, where its worker shows metrics.

    Args:
        shard: the shard's name.
        outcome: what the batch did.
    """
    if (own := page()) is not None:
        own.add(shard, outcome.counts)
