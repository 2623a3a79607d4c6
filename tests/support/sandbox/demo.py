"""A small data set, and shards in this process on which the demo is played."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
from pydal import DAL
from rich.console import Console

from pipeline import demo
from pipeline.demo import data
from pipeline.demo.data import COLUMNS, Dataset
from pipeline.demo.screen import Screen, Summary
from pipeline.demo.system import System

SHARDS = ("s0", "s1")
PLANES = [f"N{number}" for number in range(40)]


class Shards:
    """A façade that applies at once, to one SQLite in memory per shard; each argument breaks one thing."""

    def __init__(
        self,
        bulk: Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]] = lambda table, rows: rows,
        doubling: Callable[[], int] = lambda: 1,
        deleting: Callable[[], int] = lambda: 1,
        delay_doublings: bool = False,
        stale_reads: bool = False,
        status: str = "applied",
    ):
        self._bulk, self._doubling, self._deleting = bulk, doubling, deleting
        self._delay_doublings, self._stale_reads, self._status = delay_doublings, stale_reads, status
        self.misplaced: set[str] = set()
        self.reads = 0
        self._delayed: dict[int, str] = {}
        self._shard_of_id: dict[int, Any] = {}
        self.dals = {shard: DAL("sqlite:memory", bigint_id=True, pool_size=0) for shard in SHARDS}
        for db in self.dals.values():
            data.define_demo_tables(db)

    def get_db(self, table: str, key: str) -> Any:
        return self.dals[place(table, key)]

    def enqueue_bulk_insert(self, table: Any, rows: list[dict[str, Any]]) -> list[Any]:
        rows_by_shard = self._bulk(table._tablename, rows)
        receipts = [self._insert(table._tablename, row) for row in rows_by_shard]
        return (receipts + receipts[-1:])[: len(rows)]

    def enqueue_update(self, query: Any, **changes: Any) -> Any:
        db, id = self._shard_of_id[query.second], query.second
        sql = query.db(query)._update(**changes)
        if _doubles(changes) and self._delay_doublings:
            self._delayed[id] = sql
            return self._receipt(id)
        for _ in range(self._doubling() if _doubles(changes) else 1):
            db.executesql(sql)
        if id in self._delayed:
            db.executesql(self._delayed.pop(id))
        return self._receipt(id)

    def enqueue_delete(self, query: Any) -> Any:
        for _ in range(self._deleting()):
            self._shard_of_id[query.second].executesql(query.db(query)._delete())
        return self._receipt(query.second)

    def enqueue_upsert(self, table: Any, key: list[str], **row: Any) -> Any:
        assert key == ["tailnum"]
        db = self._shard_for("plane", row["tailnum"])
        db.plane.update_or_insert(db.plane.tailnum == row["tailnum"], **row)
        return self._receipt(0)

    def barrier(self, table: str, timeout_s: float) -> None:
        assert timeout_s >= 0
        self._commit()

    @contextmanager
    def read(self, table: str, shard_key: str, after: Any, **bounds: Any) -> Iterator[Any]:
        db = self.get_db(table, shard_key)
        db.read_info = SimpleNamespace(node="s0-r0", role="replica", lag_s=0.1, waited_s=0.004, stale=False)
        if not self._stale_reads:
            yield db
            return
        delay = db.flight[after.id].arr_delay
        db.executesql(f"UPDATE flight SET arr_delay = NULL WHERE id = {after.id}")
        yield db
        db.executesql(f"UPDATE flight SET arr_delay = {delay} WHERE id = {after.id}")

    def get(self, table: Any, id: int, after: Any = None, **bounds: Any) -> Any:
        self.reads += 1
        self._commit()
        return self._shard_of_id[id].flight[id]

    def _commit(self) -> None:
        for db in self.dals.values():
            db.commit()

    def _insert(self, table: str, row: dict[str, Any]) -> Any:
        id = len(self._shard_of_id) + 1
        self._shard_of_id[id] = self._shard_for(table, row[data.SHARD_KEY[table]])
        self._shard_of_id[id][table].insert(id=id, **row)
        return self._receipt(id)

    def _shard_for(self, table: str, key: str) -> Any:
        shard = place(table, key)
        return self.dals["s1" if shard == "s0" else "s0"] if key in self.misplaced else self.dals[shard]

    def _receipt(self, id: int) -> Any:
        return SimpleNamespace(id=id, status=lambda: self._status, wait=lambda timeout_s: self._status)


def played(dataset: Dataset, shards: Shards, screen: Screen | None = None) -> Summary:
    stage = System(
        pipeline=shards,
        directory=Path("/nowhere"),
        shards=SHARDS,
        processes=("redis", "s0", "s1"),
        flower_url="http://127.0.0.1:5555",
        place=place,
        create_tables=lambda db: None,
        count_batches=lambda: 12,
        held_up=lambda shard: nullcontext(),
        lags=lambda shard, more_than_s: True,
        reads=lambda: {("s0-r0", "replica", "fresh"): shards.reads},
    )
    try:
        return demo.play(stage, dataset, screen or Screen(Console(file=io.StringIO())), "embedded")
    finally:
        for db in shards.dals.values():
            db.close()


def place(table: str, key: str) -> str:
    return SHARDS[crc32(key.encode()) % 2]


def _doubles(changes: dict[str, Any]) -> bool:
    """Tell whether the update is the step `arr_delay * 2`; no flight is late by 2 in the last step."""
    return getattr(changes.get("arr_delay"), "second", None) == 2


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Four hundred flights in the layout of the real files; every fortieth has no aircraft."""
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", _csv("flight", [_flight(number) for number in range(400)]))
    planes = [[tail, 2004, "Fixed wing", "EMBRAER", "EMB-145XR", 2, 55, "NA", "Turbo-fan"] for tail in PLANES]
    (folder / "planes.csv").write_text(_csv("plane", planes))
    hours = [
        [origin, 2013, 1, 1, hour, 39.02, 26, 59.37, 270, 10.357019999999999, "NA", 0, 1012, 10, "2013-01-01T06:00:00Z"]
        for hour in range(24)
        for origin in ("EWR", "JFK", "LGA")
    ]
    (folder / "weather.csv").write_text(_csv("weather", hours))
    return Dataset(folder)


def _flight(number: int) -> list[object]:
    cancelled = number % 20 == 5
    tailnum = "NA" if number % 40 == 5 else PLANES[number * 7 % len(PLANES)]
    times = ["NA", 515, "NA", "NA", 819, "NA"] if cancelled else [517, 515, number % 9, 830, 819, number % 50 - 20]
    end = ["NA" if cancelled else 227, 1400, 5, 15, "2013-01-01T10:00:00Z"]
    return [2013, 1, 1, *times, "UA", number, tailnum, "EWR", "IAH", *end]


def _csv(table: str, rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS[table], *rows])
    return text.getvalue()
