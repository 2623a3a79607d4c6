"""What one look at a node tells, and what follows from it: how far behind it is.

Invariant: nothing is derived from a missing reading. A replica's *horizon* is a moment, by the primary's own clock, of
which it is proved that all that was committed until then is there. Lag is the primary's now less the horizon, so with
no news it grows by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.model.op import Position

#: Looks at the primary that are kept, a second each. A replica further behind is measured by what it has committed.
LOOKS = 64


class Reading(NamedTuple):
    """What a node said of itself, in one consistent read.

    Attributes:
        now_ms: the node's own clock. Only the primary's is used.
        takes_writes: None where the engine cannot tell.
        marks: its watermarks.
        written_ms: when the newest of them was committed, by the primary's clock.
        beat_ms: the heartbeat, by the same clock.
    """

    now_ms: int
    takes_writes: bool | None
    marks: Mapping[int, Position]
    written_ms: int
    beat_ms: int

    @property
    def newest_ms(self) -> int:
        """When the newest thing that it has was committed."""
        return max(self.written_ms, self.beat_ms)

    def covers(self, other: Reading) -> bool:
        """Whether this node has everything that the other had."""
        mine = self.marks
        return self.beat_ms >= other.beat_ms and all(
            bucket in mine and mine[bucket] >= position for bucket, position in other.marks.items()
        )


class NoReading(NamedTuple):
    """A look that came to nothing. It is not a lag of zero; it is not a lag at all.

    Attributes:
        refused: whether the node, or its machine, said no: it is down, as nobody can tell of one that is silent.
    """

    why: str
    refused: bool = False


Look = Reading | NoReading


class Yardstick:
    """The primary's looks of late: what a replica's reading is measured against, and the primary's clock.

    Starts anew whenever another node is the primary, or the primary's clock has gone back: what was committed by
    another clock is then compared by position only, until the new clock has passed it.
    """

    def __init__(self) -> None:
        self._node = ""
        self._looks: deque[Reading] = deque(maxlen=LOOKS)
        self._offset_ms = 0.0
        self._other_clock_ms = 0

    def __bool__(self) -> bool:
        return bool(self._looks)

    def add(self, node: str, reading: Reading, asked_at_s: float) -> bool:
        """Take a look at the primary; return whether it started anew, which ends the horizons found so far.

        Args:
            asked_at_s: this process's clock before it was asked.
        """
        anew = node != self._node or (bool(self._looks) and reading.now_ms < self._looks[-1].now_ms)
        if anew:
            # the very first look has no other clock before it
            other_clock = self._node != ""
            self._node = node
            self._other_clock_ms = max(reading.newest_ms, self._newest_ms()) if other_clock else 0
            self._looks.clear()
        self._looks.append(reading)
        # the answer's way is counted as lag: an upper bound must not be too small
        self._offset_ms = reading.now_ms - 1000 * asked_at_s
        return anew

    def now_ms(self, at_s: float) -> float:
        """Return the primary's time at a moment of this process's clock, as its last look tells it."""
        return 1000 * at_s + self._offset_ms

    def horizon_ms(self, reading: Reading) -> int | None:
        """Return until when a replica has everything, by the primary's clock; None where nothing proves it."""
        horizon = next((look.now_ms for look in reversed(self._looks) if reading.covers(look)), None)
        # commits are replicated in their order: what was committed before the newest that it has is there too
        if self._looks and self._other_clock_ms < reading.newest_ms <= self._looks[-1].now_ms:
            return max(reading.newest_ms, horizon or 0)
        return horizon

    def _newest_ms(self) -> int:
        return self._looks[-1].newest_ms if self._looks else 0
