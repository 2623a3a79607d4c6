"""What this process knows of one node. A value: it holds until there is news, while the lag in it grows by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline import clock
from pipeline.model.op import Position


class View(NamedTuple):
    """What is known of one node.

    Attributes:
        horizon_s: the moment, by this process's steady clock, until when it surely has everything; None where its lag
            was never measured, or nothing is told.
        out: whether it is out of rotation, or unfit.
        marks: watermarks that it has passed.
        primary: whether it takes writes; None where that is not known.
        why: why the prober has no news of it; empty where it has.
        doubtful: whether it serves only where no other may: the last look came to nothing, or showed it standing still.
        unfit: whether it was away for too long, and is not to serve, nor to be followed, until it was rebuilt.
    """

    horizon_s: float | None = None
    out: bool = False
    marks: Mapping[int, Position] = {}
    primary: bool | None = None
    why: str = ""
    unfit: bool = False
    doubtful: bool = False

    @property
    def lag_s(self) -> float | None:
        """An upper bound of its lag now."""
        return self.lag_at(clock.mono_s())

    def lag_at(self, now_s: float) -> float | None:
        """Return an upper bound of its lag at a moment of this process's clock."""
        return None if self.horizon_s is None else now_s - self.horizon_s


NOTHING = View()
