"""The demo without servers: its check passes what is right, sees every kind of fault, and says so."""

from __future__ import annotations

import io
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.sandbox.demo import SHARDS, Shards, played

from pipeline import demo
from pipeline.cli.cluster import demo as command
from pipeline.demo import system
from pipeline.demo.data import COLUMNS, Dataset
from pipeline.demo.screen import Screen, Summary
from pipeline.errors import WaitTimeout


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "LOOK_S", 0.0)
    monkeypatch.setattr(demo, "LOOK_S", 0.0)


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
    monkeypatch.setattr(system, "MILESTONE_OPS", 10)

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
    assert system.total(answer) == count


# what the user sees ------------------------------------------------------------------------------------------


def test_what_is_no_terminal_gets_plain_lines_of_a_hundred_columns(dataset: Dataset) -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output))

    screen.summary(played(dataset, Shards(), screen))

    assert "\x1b" not in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 100
    assert "are exactly what the file says" in output.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_beside_a_growth_fit_a_terminal_and_what_was_done_is_printed_once(columns: int) -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=True, width=columns, color_system=None))
    growth = SimpleNamespace(stage="comparing", rows=1_234_567, total=7_654_321, done=[])
    done = SimpleNamespace(name="To s2", words="11 buckets of s0, 57,012 rows copied and compared", seconds=12.7)

    with screen.bars(system.Meter(), cast("Any", growth)) as move:
        move(1_000_000)
        growth.done.append(done)
        move(1_000_000)
        move(1_000_000)

    printed = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", output.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", printed) if line.strip()]
    assert sum("To s2" in line for line in lines) == 1
    assert any("comparing" in line and "1,234,567 of 7,654,321" in line for line in lines)
    assert max(map(len, lines)) <= columns


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
