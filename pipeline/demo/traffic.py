"""The traffic: a year of an airline's desk as the calls of an application, one method a kind of write.

These are the lines to read for how the pipeline is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from pipeline.clock import mono_s
from pipeline.demo.data import Correction, DataRow, is_cancelled, is_corrected
from pipeline.demo.meter import Meter

_Item = TypeVar("_Item")

#: Rows of one bulk call: two or three round trips, and the bars move 40 times a second.
CHUNK_ROWS = 2_000
#: Ops between two ticks: 20 a second at the pace of single ops.
TICK_OPS = 200
#: Flights whose corrections are sent step by step together, so that the steps of one flight are ops apart.
WINDOW_FLIGHTS = 500
#: What a plane has too few seats at first, where it is refitted later.
REFIT_SEATS = 12


class Traffic:
    """Sends the ops of the demo through the façade *pipeline*; calls `tick` every few hundred."""

    def __init__(self, pipeline: Any, db: Any, meter: Meter):
        self.pipeline, self.db, self.meter = pipeline, db, meter
        self.tick: Callable[[], object] = lambda: None
        #: What `publish` found that later methods need.
        self.corrections: list[Correction] = []
        self.cancelled: list[int] = []

    def publish(self, flights: Iterable[DataRow]) -> None:
        """Insert the schedule, with no delays yet."""
        numbered = enumerate(flights)
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            rows = [{**flight, "dep_delay": None, "arr_delay": None} for _, flight in chunk]
            receipts = self.pipeline.enqueue_bulk_insert(self.db.flight, rows)
            self._remember(chunk, receipts)
            self._count(receipts[-1], len(rows))

    def observe(self, weather: Iterable[DataRow]) -> None:
        """Insert the weather."""
        for rows in _chunks(weather, CHUNK_ROWS):
            receipts = self.pipeline.enqueue_bulk_insert(self.db.weather, rows)
            self._count(receipts[-1], len(rows))

    def register(self, planes: Iterable[DataRow]) -> None:
        """Upsert every plane; the odd ones are bought with fewer seats and refitted later."""
        for number, plane in enumerate(planes):
            if number % 2:
                plane = {**plane, "seats": int(plane["seats"] or 0) - REFIT_SEATS}
            self._upsert_plane(plane)

    def refit(self, planes: Iterable[DataRow]) -> None:
        """Upsert the odd planes again, with the seats they have now."""
        for plane in islice(planes, 1, None, 2):
            self._upsert_plane(plane)

    def correct(self, corrections: Iterable[Correction]) -> None:
        """Correct delays; half of the flights in three steps, two of them relative to what the column holds."""
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
            self._single(self.pipeline.enqueue_delete, self.db.flight.id == id)

    def update(self, id: int, **changes: Any) -> Any:
        """Update one flight and return the receipt."""
        return self._single(self.pipeline.enqueue_update, self.db.flight.id == id, **changes)

    def _upsert_plane(self, plane: DataRow) -> None:
        self._single(self.pipeline.enqueue_upsert, self.db.plane, key=["tailnum"], **plane)

    def _single(self, enqueue: Callable[..., Any], *args: Any, **named: Any) -> Any:
        started_s = mono_s()
        receipt = enqueue(*args, **named)
        self.meter.took(mono_s() - started_s)
        self._count(receipt)
        return receipt

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
