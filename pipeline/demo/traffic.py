"""Send the traffic: a year of an airline's desk as the calls of an application, one method per kind of write.

`Traffic` has the lines to read for how the pipeline is used; `Meter` counts what it sends.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from pipeline.api import reads
from pipeline.clock import mono_s
from pipeline.demo.data import Correction, DataRow, is_cancelled, is_corrected
from pipeline.model.receipt import Receipt

#: Ops between two milestones: at 50,000 ops/s that makes at most 50 status calls a second.
MILESTONE_OPS = 1_000
#: Time between two looks, s: the eye needs no more, and each look costs a query or two.
LOOK_S = 0.25

_PENDING = frozenset({"queued", "spooled"})


class Meter:
    """Counts of a run: ops that are enqueued, ops that are applied, and how long a single enqueue takes.

    Receipts say what is applied. About one in a thousand is a milestone, and the oldest queued milestone's status is
    read. Buckets advance side by side, so the number is exact only at the end, after the barrier.

    Attributes:
        enqueued, applied: ops so far.
        started_s: when the run began, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.enqueued = self.applied = 0
        self.started_s = mono_s()
        self._single_s = array("d")
        self._milestones: deque[tuple[int, Receipt]] = deque()
        self._last_milestone = 0
        self._looked_s = 0.0

    def sent(self, receipt: Receipt, ops: int = 1) -> None:
        """Count ops as enqueued.

        Args:
            receipt: the receipt of the last.
            ops: how many.
        """
        self.enqueued += ops
        if self.enqueued - self._last_milestone >= MILESTONE_OPS:
            self._last_milestone = self.enqueued
            self._milestones.append((self.enqueued, receipt))

    def settle(self) -> None:
        """Count everything as applied, once the barrier has returned."""
        self.applied = self.enqueued

    def took(self, seconds: float) -> None:
        """Record how long one single enqueue took, in *seconds*."""
        self._single_s.append(seconds)

    def look(self) -> bool:
        """Read the status of the oldest milestones; return False if the last look is less than `LOOK_S` ago."""
        now_s = mono_s()
        if now_s - self._looked_s < LOOK_S:
            return False
        while self._milestones and self._milestones[0][1].status() not in _PENDING:
            self.applied = self._milestones.popleft()[0]
        self._looked_s = now_s
        return True

    def read_anew(self) -> None:
        """Read receipts that are kept as another process would: by the configuration of now."""
        self._milestones = deque((ops, reads.Receipt.parse(str(receipt))) for ops, receipt in self._milestones)

    @property
    def caught_up(self) -> bool:
        """Whether every milestone has passed."""
        return not self._milestones

    def quantile_us(self, share: float) -> float | None:
        """Return a quantile of the single enqueues' durations in microseconds; None if there were none.

        Args:
            share: which, between 0 and 1.
        """
        ordered = sorted(self._single_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 if ordered else None


_Item = TypeVar("_Item")

#: Rows of one bulk call: two or three round trips; the bars move 40 times a second.
CHUNK_ROWS = 2_000
#: Ops between two ticks: 20 a second at the pace of single ops.
TICK_OPS = 200
#: Flights whose corrections are sent step by step together: other ops come between the steps of one flight.
WINDOW_FLIGHTS = 500
#: How many seats a plane that is refitted later lacks at first.
REFIT_SEATS = 12


class Traffic:
    """Sends the ops of the demo.

    Attributes:
        pipeline: the public functions.
        db: the DAL with the demo's tables.
        meter: counts what is sent.
        tick: called every few hundred ops.
        chunk_rows: rows of one bulk call.
        corrections, cancelled: what `publish` found in the schedule: corrections, and ids of flights.
    """

    def __init__(self, pipeline: Any, db: Any, meter: Meter):
        self.pipeline, self.db, self.meter = pipeline, db, meter
        self.tick: Callable[[], object] = lambda: None
        self.chunk_rows = CHUNK_ROWS
        #: What `publish` found, for later methods.
        self.corrections: list[Correction] = []
        self.cancelled: list[int] = []

    def publish(self, flights: Iterable[DataRow]) -> None:
        """Insert the schedule, with no delays yet.

        Args:
            flights: rows in the file's order.
        """
        numbered = enumerate(flights)
        while chunk := list(islice(numbered, self.chunk_rows)):
            rows = [{**flight, "dep_delay": None, "arr_delay": None} for _, flight in chunk]
            receipts = self.pipeline.enqueue_bulk_insert(self.db.flight, rows)
            self._remember(chunk, receipts)
            self._count(receipts[-1], len(rows))

    def observe(self, weather: Iterable[DataRow]) -> None:
        """Insert the hours of *weather*."""
        for rows in _chunks(weather, self.chunk_rows):
            receipts = self.pipeline.enqueue_bulk_insert(self.db.weather, rows)
            self._count(receipts[-1], len(rows))

    def register(self, planes: Iterable[DataRow]) -> None:
        """Upsert every plane; every second one has fewer seats until `refit`.

        Args:
            planes: rows in the file's order.
        """
        for number, plane in enumerate(planes):
            if number % 2:
                plane = {**plane, "seats": int(plane["seats"] or 0) - REFIT_SEATS}
            self._upsert_plane(plane)

    def refit(self, planes: Iterable[DataRow]) -> None:
        """Upsert every second plane again, with the file's number of seats.

        Args:
            planes: rows in the file's order.
        """
        for plane in islice(planes, 1, None, 2):
            self._upsert_plane(plane)

    def correct(self, corrections: Iterable[Correction]) -> None:
        """Correct delays; half of the flights in three steps, two of them relative to what the column holds.

        Args:
            corrections: of flights that `publish` has inserted.
        """
        for window in _chunks(corrections, WINDOW_FLIGHTS):
            relative = [flight for flight in window if flight.relative]
            for flight in window:
                self.update(flight.id, dep_delay=flight.dep_delay, arr_delay=flight.estimate)
            for flight in relative:
                self.update(flight.id, arr_delay=self.db.flight.arr_delay * 2)
            for flight in relative:
                self.update(flight.id, arr_delay=self.db.flight.arr_delay + flight.late_min)

    def cancel(self) -> None:
        """Delete the flights that never left."""
        for id in self.cancelled:
            started_s = mono_s()
            receipt = self.pipeline.enqueue_delete(self.db.flight.id == id)
            self._single(receipt, started_s)

    def update(self, id: int, **changes: Any) -> Any:
        """Update one flight and return the receipt.

        Args:
            id: the flight's id.
            changes: by column, a value or an expression.
        """
        started_s = mono_s()
        receipt = self.pipeline.enqueue_update(self.db.flight.id == id, **changes)
        self._single(receipt, started_s)
        return receipt

    def _upsert_plane(self, plane: DataRow) -> None:
        started_s = mono_s()
        receipt = self.pipeline.enqueue_upsert(self.db.plane, key=["tailnum"], **plane)
        self._single(receipt, started_s)

    def _single(self, receipt: Any, started_s: float) -> None:
        self.meter.took(mono_s() - started_s)
        self._count(receipt)

    def _count(self, receipt: Any, ops: int = 1) -> None:
        before = self.meter.enqueued
        self.meter.sent(receipt, ops)
        if before // TICK_OPS != self.meter.enqueued // TICK_OPS:
            self.tick()

    def _remember(self, chunk: list[tuple[int, DataRow]], receipts: Any) -> None:
        for (number, flight), receipt in zip(chunk, receipts, strict=True):
            if is_cancelled(flight):
                self.cancelled.append(receipt.id)
            elif is_corrected(number, flight):
                self.corrections.append(_correction(number, flight, receipt.id))


def _correction(number: int, flight: DataRow, id: int) -> Correction:
    dep_delay, arr_delay = flight["dep_delay"], flight["arr_delay"]
    if not isinstance(dep_delay, int) or not isinstance(arr_delay, int):
        raise TypeError(f"flight {number} arrived, but the file has no delays for it")
    return Correction(id, number, str(flight["tailnum"]), dep_delay, arr_delay)


def _chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
