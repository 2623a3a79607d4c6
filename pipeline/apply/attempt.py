"""Note what a worker is about to apply, so that whatever ends the worker leaves a trace; narrow down what failed.

A note is written under the lock of the bucket's watermark, and removed after the commit. So a worker that gets the lock
and finds a note for the present watermark knows that the noted attempt has failed. The next attempt is narrower: the
bucket alone, an eighth of its entries, and so on down to one op. One op is rejected after `MOST_DEATHS` attempts alone.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.model.op import Position

#: How often an op alone may end its worker, its server or its time before it is rejected.
MOST_DEATHS = 3
#: An attempt that failed is followed by one with so many times fewer entries.
NARROWER = 8


class Attempt(NamedTuple):
    """An attempt to apply the next entries of one bucket.

    Args:
        after: the watermark that the attempt begins at.
        left: how many entries are under suspicion.
        entries: how many of these the attempt takes, with no other bucket; 0: it takes all, beside other buckets.
        deaths: how many attempts with one entry ended the worker, the server or the statement's time.
        waits: how many attempts with one entry ended in a lock that another program holds.
        ended: whether the attempt has failed in an orderly way, so that nothing is to be concluded from the note.
    """

    after: Position
    left: int
    entries: int = 0
    deaths: int = 0
    waits: int = 0
    ended: bool = False

    def of(self, found: int) -> Attempt:
        """Return this attempt with no more entries than it takes.

        Args:
            found: how many of its entries are there, and fit into one transaction.
        """
        return self._replace(entries=min(self.entries, found))

    def failed(self) -> Attempt:
        """Return the attempt that follows this one's failure: what is at fault is among the entries that it took."""
        if self.entries == 0:
            return self._replace(entries=self.left, ended=False)
        if self.entries > 1:
            return self._replace(left=self.entries, entries=max(1, self.entries // NARROWER), ended=False)
        return self._replace(deaths=self.deaths + 1, ended=False)

    def waited(self) -> Attempt:
        """Return the attempt that follows this one's failure to get a lock."""
        return self._replace(waits=self.waits + 1) if self.entries == 1 else self.failed()

    def succeeded(self, to: Position, taken: int) -> Attempt | None:
        """Return the attempt for the entries that are still under suspicion; None where none are left.

        Args:
            to: the watermark that this attempt left.
            taken: how many entries it applied.
        """
        left = self.left - taken
        return Attempt(to, left, min(self.entries, left)) if left > 0 else None

    def after_note(self, note: str) -> Attempt:
        """Return the attempt to make where another worker may have noted a narrower one since this was planned.

        Args:
            note: of the bucket, or the empty text.
        """
        noted = self.suspected(note) if note else None
        if noted is None or noted.after != self.after:
            return self
        return max(self, noted, key=lambda one: (-one.entries, one.deaths, one.waits))

    def __str__(self) -> str:
        if self[2:] == _FIRST:
            return f"{self.after} {self.left}"
        return f"{self.after} {self.left} {self.entries} {self.deaths} {self.waits} {int(self.ended)}"

    @classmethod
    def parse(cls, note: str) -> Attempt | None:
        """Return the attempt of a note; None for a note that this version cannot read.

        Args:
            note: what `str` made of an attempt.
        """
        after, *numbers = note.split()
        try:
            left, *more = map(int, numbers)
            entries, deaths, waits, ended = more or _FIRST
            return cls(Position.parse(after), max(1, left), entries, deaths, waits, bool(ended))
        except ValueError:
            return None

    @classmethod
    def suspected(cls, note: str) -> Attempt | None:
        """Return the attempt to make where *note* was found for the present watermark.

        Args:
            note: of an earlier attempt; no living worker makes it, since the bucket's lock was free.
        """
        noted = cls.parse(note)
        return None if noted is None else noted._replace(ended=False) if noted.ended else noted.failed()


#: What an attempt beside other buckets has behind `left`; its note leaves that out.
_FIRST = (0, 0, 0, False)
