"""Read in two scenes: one's own write at once, then mixed reads.

Mixed reads are without a token, with one, and while a replica is held up; they are counted by node and reason.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.clock import polls
from pipeline.demo.data import Correction
from pipeline.demo.system import System
from pipeline.demo.traffic import Traffic
from pipeline.errors import StaleRead

#: Numbers of reads: without a token, with one, while a replica lags, with a token while a replica lags.
PLAIN, OWN, LAGGING, OWN_LAGGING = 300, 10, 60, 5
#: How long an own read may wait for a replica, s: the embedded engine copies a primary three times a second.
SHOWN_WAIT_S = 2.0
#: The lag that the scene makes, and how long it waits for the replica to lag so much, s.
LAG_S, LAGS_WITHIN_S = 1.0, 15.0
#: What the age of the prober's report may add to a replica's lag, s: a second, and some for its way.
AGE_S = 1.5


@dataclass(frozen=True, slots=True)
class OwnWrite:
    """A write and the two reads of it.

    Attributes:
        written: the delay that was written, minutes.
        read, got: what `pipeline.read` and `pipeline.get` gave back; None for no row.
        node, role: which node served the first read.
        waited_s: how long the first read waited for its node.
        tailnum: the flight's aircraft.
    """

    written: int
    read: int | None
    got: int | None
    node: str
    role: str
    waited_s: float
    tailnum: str

    @property
    def true(self) -> bool:
        """Whether both reads saw the write."""
        return self.read == self.got == self.written

    def __str__(self) -> str:
        return (
            f"arr_delay of {self.tailnum}: wrote {self.written}, read {self.read} from {self.node} "
            f"({self.role}) in {self.waited_s * 1e3:.0f} ms, got {self.got}"
        )


def read_own_write(traffic: Traffic, flight: Correction) -> OwnWrite:
    """Correct one flight that had no delays yet, and read it with the receipt as token, in both ways.

    Args:
        traffic: sends the correction.
        flight: the correction.
    """
    pipeline, table = traffic.pipeline, traffic.db.flight
    receipt = traffic.update(flight.id, dep_delay=flight.dep_delay, arr_delay=flight.arr_delay)
    with pipeline.read("flight", shard_key=flight.tailnum, after=receipt) as db:
        row = db(db.flight.id == flight.id).select(db.flight.arr_delay).first()
        served = db.read_info
        read = _arr_delay(row)
    got = _arr_delay(pipeline.get(table, flight.id, after=receipt))
    return OwnWrite(flight.arr_delay, read, got, served.node, served.role, served.waited_s, flight.tailnum)


def _arr_delay(row: Any) -> int | None:
    return None if row is None else row["arr_delay"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """What the mixed reads gave.

    Attributes:
        counts: (node, kind, reason, reads), as the routing counted them.
        wrong: own reads that did not show their write.
    """

    counts: tuple[tuple[str, str, str, int], ...]
    wrong: int

    @property
    def reads(self) -> int:
        """How many reads there were, refused ones included."""
        return sum(reads for *_, reads in self.counts)


def read_mixed(system: System, traffic: Traffic, flight: Correction) -> Mixed:
    """Read one flight again and again, as a site would; its row stays what the file says.

    Args:
        system: the running system.
        traffic: sends the writes between the reads.
        flight: the flight's correction.
    """
    before = dict(system.reads())
    table, read = traffic.db.flight, traffic.pipeline.get
    wrong = 0
    for _ in range(PLAIN):
        read(table, flight.id)
    for number in range(OWN):
        wrong += not _own_read(traffic, flight, number, wait_s=SHOWN_WAIT_S)
    shard = system.place("flight", flight.tailnum)
    with system.held_up(shard):
        traffic.update(flight.id, arr_delay=flight.arr_delay)
        if any(system.lags(shard, LAG_S + AGE_S) for _ in polls(LAGS_WITHIN_S)):
            for number in range(LAGGING):
                read(table, flight.id, max_lag_s=LAG_S, on_stale=("primary", "stale")[number % 2])
            for number in range(OWN_LAGGING):
                # refused while the write is queued: an answer without the write would be wrong
                with suppress(StaleRead):
                    wrong += not _own_read(traffic, flight, number, wait_s=0.05, max_lag_s=LAG_S)
    traffic.update(flight.id, arr_delay=flight.arr_delay).wait(SHOWN_WAIT_S * 5)
    found = {choice: reads - before.get(choice, 0) for choice, reads in system.reads().items()}
    return Mixed(tuple((*choice, reads) for choice, reads in sorted(found.items()) if reads), wrong)


def _own_read(traffic: Traffic, flight: Correction, number: int, **bounds: Any) -> bool:
    """Write another delay, and return whether a read with the receipt shows it."""
    receipt = traffic.update(flight.id, arr_delay=number)
    row = traffic.pipeline.get(traffic.db.flight, flight.id, after=receipt, **bounds)
    return row is not None and row["arr_delay"] == number
