"""Count in a worker's pool processes, for its main process to read: memory that forked processes share.

Each pool process has a page of its own and is its only writer. So no lock is held, and a process that was killed leaves
none behind. Celery gives a new pool process the number of one that ended: it goes on with that one's page, and no
number ever falls. A number is written at once: `struct.pack_into` fills its place with zeros first, which others see.
"""

from __future__ import annotations

import logging
import mmap
import threading
from collections.abc import Iterator, Mapping

from celery.utils.log import current_process_index

from pipeline.apply.transaction import Outcome
from pipeline.events import Event
from pipeline.per_process import PerProcess

#: The size of one page, bytes; the kernel gives memory to what is used of it. A shard takes up to 10 kB.
PAGE = 1 << 19
#: The size of a number, bytes; it stands at a multiple of it. Before it stand its name's length, 0 where the page ends,
#: and the name.
_NUMBER = 8
logger = logging.getLogger("pipeline.metrics")


class Tally:
    """The pages of all pool processes. Make it before they are forked.

    Args:
        pages: how many processes there can be at once.
    """

    def __init__(self, pages: int):
        self._pages, self._memory = pages, memoryview(mmap.mmap(-1, pages * PAGE))

    def page(self, number: int) -> Page | None:
        """Return the page of a process; None where there are more processes than pages.

        Args:
            number: of the process in its pool, from 0.
        """
        if number >= self._pages:
            logger.warning(Event("process_not_counted", process=number, why="the pool began smaller"))
            return None
        return Page(self._of(number))

    def _of(self, number: int) -> memoryview:
        return self._memory[number * PAGE : (number + 1) * PAGE]

    def totals(self) -> dict[str, dict[str, int]]:
        """Return by shard the sums of all pages, by the counter's name."""
        found: dict[str, dict[str, int]] = {}
        for number in range(self._pages):
            for (shard, _, name), _, value in _read(self._of(number)):
                counts = found.setdefault(shard, {})
                counts[name] = counts.get(name, 0) + value
        return found


class Page:
    """The numbers of one process, which is their only writer.

    Args:
        memory: of this page.
    """

    def __init__(self, memory: memoryview):
        self._memory, self._numbers = memory, memory.cast("q")
        #: By shard and name: where the number stands, and the number.
        self._known: dict[str, dict[str, tuple[int, int]]] = {}
        self._next, self._full = 0, False
        self._writing = threading.Lock()  # a pool of threads is one process
        for (shard, _, name), at, value in _read(memory):
            self._known.setdefault(shard, {})[name] = at, value
            self._next = at + _NUMBER

    def add(self, shard: str, counts: Mapping[str, int]) -> None:
        """Add to counters; one that is new begins at 0.

        Args:
            shard: the shard's name, which has no blank.
            counts: by the counter's name, how much, 0 or more.
        """
        with self._writing:
            known, numbers = self._known.setdefault(shard, {}), self._numbers
            for name, by in counts.items():
                at, value = known.get(name) or self._new(f"{shard} {name}")
                if at:
                    known[name] = at, value + by
                    numbers[at // _NUMBER] = value + by

    def _new(self, name: str) -> tuple[int, int]:
        """Return where a new number stands; 0 where the page is full, and the number is not shown."""
        text, start = name.encode(), self._next + _NUMBER
        at = start + len(text) + -len(text) % _NUMBER
        if at + 2 * _NUMBER > PAGE:
            if not self._full:  # once: who makes tables without end would fill the log
                logger.warning(Event("metric_not_counted", metric=name, why="there is no room"))
            self._full = True
            return 0, 0
        self._memory[start : start + len(text)] = text
        self._numbers[self._next // _NUMBER] = len(text)  # last: a reader sees all of it, or nothing
        self._next = at + _NUMBER
        return at, 0


def _read(memory: memoryview) -> Iterator[tuple[tuple[str, str, str], int, int]]:
    """Yield the shard and the name, the place and the value of each counter of a page."""
    numbers, at = memory.cast("q"), 0
    while at < PAGE and (length := numbers[at // _NUMBER]):
        text, at = at + _NUMBER, at + _NUMBER + length + -length % _NUMBER
        yield str(memory[text : text + length], "utf-8").partition(" "), at, numbers[at // _NUMBER]
        at += _NUMBER


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
