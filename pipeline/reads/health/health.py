"""When a node is taken out for not answering, and when it comes back. Pure: looks go in, a verdict comes out.

Invariant: only a good look brings a node back. A node that keeps failing and answering by turns, as one does of which
a third of the looks time out, takes many good looks in a row, and each relapse doubles what it takes: it stays out. One
that was restarted has failed once, for some seconds, and is back soon.
"""

from __future__ import annotations

from collections import deque

#: Missing looks in a row that take a node out: one alone may be a lost packet.
BAD_LOOKS = 2
#: Good looks in a row that bring it back the first time, and at the most.
GOOD_LOOKS, MOST_GOOD_LOOKS = 5, 40
#: A silence of fewer looks than that may be lost packets, and there will be more: then it takes so many good looks.
#: Of nodes that begin to lose 30 % of their looks, one in ten thousand changes twice within a minute.
SHORT_LOOKS, AFTER_SHORT_LOOKS = 8, 30
#: A node that has begun to answer again more often than that in the last minute is unsteady.
STEADY_RETURNS, MINUTE_LOOKS = 2, 60
#: Looks without a relapse after which one relapse is forgotten: ten minutes, a look a second.
QUIET_LOOKS = 600


class Judge:
    """Judges one node.

    Args:
        out: the verdict of the judge before this one, which died.
    """

    __slots__ = ("_bad", "_good", "_looks", "_new", "_quiet", "_refused", "_returns", "_short", "needed", "out")

    def __init__(self, *, out: bool = False) -> None:
        #: Whether the node is out of rotation.
        self.out = out
        #: Good looks in a row that the next return takes.
        self.needed = GOOD_LOOKS
        self._bad = self._good = self._quiet = self._looks = 0
        #: Whether it said no in its last failure, and whether that was short, without a word.
        self._refused = self._short = False
        #: It has never answered yet: then it is being set up, and cannot flap.
        self._new = not out
        #: The looks at which it answered after one that it had not.
        self._returns: deque[int] = deque(maxlen=STEADY_RETURNS + 1)

    def see(self, good: bool, *, refused: bool = False) -> bool:
        """Take one look; return whether it changed the verdict.

        Args:
            refused: it was told to be down, which a lost packet does not tell.
        """
        before = self.out
        self._looks += 1
        if good:
            self._see_good()
        else:
            self._see_bad(refused)
        return self.out != before

    def _see_good(self) -> None:
        if self._new:
            self._new, self.out, self._bad = False, False, 0
        if self._bad:
            self._returns.append(self._looks)
            self._short = self._bad < SHORT_LOOKS and not self._refused
        self._bad = 0
        self._refused = False
        if self.out:
            self._good += 1
            if self._good >= self._needed_now:
                self.out, self._quiet = False, 0
                self.needed = min(2 * self.needed, MOST_GOOD_LOOKS)
            return
        self._quiet += 1
        if self._quiet >= QUIET_LOOKS:
            self._quiet = 0
            self.needed = max(self.needed // 2, GOOD_LOOKS)

    @property
    def _needed_now(self) -> int:
        if self._unsteady:
            return MOST_GOOD_LOOKS
        return max(self.needed, AFTER_SHORT_LOOKS) if self._short else self.needed

    @property
    def _unsteady(self) -> bool:
        return len(self._returns) > STEADY_RETURNS and self._looks - self._returns[0] < MINUTE_LOOKS

    def _see_bad(self, refused: bool) -> None:
        self._good = 0
        self._refused |= refused
        self._bad += 1
        if self._bad >= BAD_LOOKS:
            self.out = True
