"""Which flights get their delays corrected, and in which steps.

The steps do not commute and cannot be repeated: `arr_delay` becomes the file's value only if each is applied exactly
once and in order. So the final state *is* the file's, and the check needs no replay of what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: One flight in so many is corrected: 20,449 of 336,776.
EVERY_NTH = 16


@dataclass(frozen=True, slots=True)
class Correction:
    """The delays of one flight, in minutes: an estimate first, then twice that, then `late_min` more."""

    id: int
    number: int
    tailnum: str
    dep_delay: int
    arr_delay: int

    @property
    def relative(self) -> bool:
        """Whether the flight takes the three steps (every second one does), or is set at once."""
        return self.number // EVERY_NTH % 2 == 0

    @property
    def late_min(self) -> int:
        """What the last step adds; of the result's parity, and never so that the estimate were zero or the result."""
        late = 7 + (self.arr_delay + 1) % 2
        return late if late != abs(self.arr_delay) else late + 2

    @property
    def estimate(self) -> int:
        """What the first step sets."""
        return (self.arr_delay - self.late_min) // 2 if self.relative else self.arr_delay


def is_corrected(number: int, flight: Mapping[str, object]) -> bool:
    """Tell whether the flight on line *number* of the file (from 0) is corrected; only one that arrived can be."""
    return number % EVERY_NTH == 0 and flight["arr_delay"] is not None


def is_cancelled(flight: Mapping[str, object]) -> bool:
    """Tell whether the flight never left: 8,255 of 336,776."""
    return flight["dep_time"] is None
