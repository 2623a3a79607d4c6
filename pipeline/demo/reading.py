"""The read-your-writes scene: write, and read at once, from a replica if one has it already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.demo.corrections import Correction
from pipeline.demo.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Reading:
    """What was written, what two kinds of read gave back, and which node served the first."""

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


def read_own_write(traffic: Traffic, flight: Correction) -> Reading:
    """Correct one flight that had no delays yet, and read it with the receipt as token, in both ways there are."""
    pipeline, table = traffic.pipeline, traffic.db.flight
    receipt = traffic.update(flight.id, dep_delay=flight.dep_delay, arr_delay=flight.arr_delay)
    with pipeline.read("flight", shard_key=flight.tailnum, after=receipt) as db:
        row = db(db.flight.id == flight.id).select(db.flight.arr_delay).first()
        served = db.read_info
        read = _arr_delay(row)
    got = _arr_delay(pipeline.get(table, flight.id, after=receipt))
    return Reading(flight.arr_delay, read, got, served.node, served.role, served.waited_s, flight.tailnum)


def _arr_delay(row: Any) -> int | None:
    return None if row is None else row["arr_delay"]
