"""The status says first what is wrong, and fits any terminal from 80 columns on."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.admin.observe.moves import MoveRecord
from pipeline.admin.observe.record import NodeRecord, OpFault, ReadCount, Record, RedisRecord, ShardRecord
from pipeline.cli.status_screen import lines, screen
from pipeline.model.wait_reason import WaitReason, sentences_of
from pipeline.reads.health import NodeState

REPLICA = NodeRecord("s0-r0", "replica", NodeState.IN, 123_456, 1_400, 40_000, 300)
NODES = (NodeRecord("s0", "primary"), REPLICA, REPLICA)
FINE = ShardRecord("s0", 0, 1_234_567, False, 40, 256, 12_345.0, rejected=0, lost=0, nodes=NODES)
SCHEMA = WaitReason("schema", "s0", "purchase", "Unknown column 'note' in 'field list'", 1_764_322_222_000, buckets=3)

COPYING = MoveRecord("0-15,40", "s0", "s1", "copying", 1, "ann@db", 1_234_567, 12_345_678, 54_321.0, 204)
WAITING = MoveRecord("1021", "s0", "s10", "waiting", 2, "ann@db", 10, text="42 s before rows of s0 are deleted")
STILL = MoveRecord(
    ",".join(map(str, range(0, 64, 2))), "s0", "s1", "catching up", 3, "ann@db", 7,
    still="no mover has been at it for 75 s", mend="start workers: they go on with it; or run: pipeline move give-up 5",
)  # fmt: skip


def status(*shards: ShardRecord) -> Record:
    return Record(0, RedisRecord(0.31), shards, (ReadCount("s0-r0", "replica", "chosen", 1_200_000),))


def shown(found: Record, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(screen(found, console, max_age_s=60))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_with_nothing_cut(width: int):
    wrong = replace(FINE, rejected=17, lost=3, waits=(SCHEMA,), depth=99, oldest_ms=184_000, dirty=12)

    found = shown(status(wrong, replace(FINE, shard="s1", why="Can't connect " * 9)), width)

    assert max(map(len, found)) <= width
    assert "…" not in "".join(found)
    assert "Unknown column 'note' in 'field list'" in " ".join(line.strip() for line in found)
    assert any(line.split()[:2] == ["shard", "state"] for line in found)


def test_a_wide_screen_has_replicas_beside_their_shard():
    assert any("lost  replica" in line for line in shown(status(FINE), 130))
    assert not any("lost  replica" in line for line in shown(status(FINE), 80))


def test_what_is_wrong_comes_first():
    wrong = replace(FINE, rejected=1, lost=3, waits=(SCHEMA,), depth=9, oldest_ms=61_000, dirty=2)

    found = [line.strip() for line in shown(status(wrong), 120)]
    plain = list(lines(status(wrong), max_age_s=60))

    faults = [
        "s0: 1 op was refused for good",
        "s0: 3 ops were lost",
        "s0: the oldest op has waited 61 s, more than 60 s",
    ]
    places = [next(n for n, line in enumerate(found) if fault in line) for fault in faults]
    assert places == sorted(places)
    assert places[-1] < next(n for n, line in enumerate(found) if line.startswith("shard"))
    assert [line.startswith(f"fault: {fault}") for line, fault in zip(plain, faults, strict=False)] == [True] * 3
    assert plain[3] == f"waiting: {SCHEMA.sentence()}"


@pytest.mark.parametrize("width", [80, 120])
def test_a_primary_that_gets_one_statement_at_a_time_is_named(width: int):
    slow = status(replace(FINE, singly=True), replace(FINE, shard="s1", singly=False), replace(FINE, shard="s2"))
    sentence = "s0: its primary gets one statement at a time, and batches take longer: see pipeline check"

    found = shown(slow, width)

    assert max(map(len, found)) <= width
    assert f"! {sentence}" in " ".join(" ".join(found).split())
    assert [line for line in lines(slow, max_age_s=60) if "one statement" in line] == [f"slow: {sentence}"]
    assert [one["singly"] for one in slow.as_json()["shards"]] == [True, False, None]


def test_what_stops_a_table_on_several_shards_is_said_once_since_when_the_first_was():
    pauses = [WaitReason("paused", f"s{n}", "event", "by ann: a swap", 1_764_322_222_000 + n) for n in range(5)]
    other = WaitReason("paused", "s1", "event", "by bob")

    assert sentences_of([SCHEMA, *pauses[:3], other, replace(SCHEMA, shard="s1")]) == [
        SCHEMA.sentence(),
        "ops of event on s0, s1, s2 have waited since 2025-11-28 09:30:22 UTC because event is paused"
        " (by ann: a swap); run: pipeline resume event",
        other.sentence(),
        replace(SCHEMA, shard="s1").sentence(),
    ]
    assert sentences_of(pauses)[0].startswith("ops of event on 5 shards have waited since ")
    found = status(*(replace(FINE, shard=pause.shard, waits=(pause,)) for pause in pauses))
    assert sum("is paused" in line for line in lines(found, max_age_s=60)) == 1


def test_the_op_that_was_refused_last_is_named():
    wrong = replace(FINE, rejected=3, refused="17:1795859554-3 of purchase, error 4025")

    said = "3 ops were refused for good; run: pipeline dead list (the last is 17:1795859554-3 of purchase, error 4025)"
    assert f"fault: s0: {said}" in list(lines(status(wrong), max_age_s=60))
    assert said in " ".join(line.strip() for line in shown(status(wrong), 80))


def test_where_nothing_is_wrong_it_says_so():
    assert any("nothing is wrong" in line for line in shown(status(FINE), 80))
    assert status(FINE).faults(60) == []


@pytest.mark.parametrize(
    ("shard", "what"),
    [
        (replace(FINE, rejected=17), "17 ops were refused for good"),
        (replace(FINE, lost=1), "1 op was lost by Redis"),
        (replace(FINE, given_up=2), "2 ops were refused, and given up to make room"),
        (replace(FINE, waits=(WaitReason("breaker", "s0", "event", "no"),)), "event is halted: no"),
        (
            replace(FINE, at_ms=60_002, waits=(WaitReason("schema", "s0", "event", "no such column", 1),)),
            "event has ops that wait: no such column",
        ),
        (replace(FINE, depth=1, oldest_ms=60_001), "the oldest op has waited 60 s, more than 60 s"),
    ],
)
def test_a_fault_makes_the_status_not_ok(shard: ShardRecord, what: str):
    [fault] = status(shard).faults(60)

    assert isinstance(fault, OpFault)
    assert str(fault) == f"s0: {what}"
    assert status(shard).as_json(60)["ok"] is False
    assert status(FINE).as_json(60)["ok"] is True
    assert status(replace(FINE, depth=1, oldest_ms=60_000)).faults(60) == []
    young = WaitReason("schema", "s0", "event", "no such column", 1)
    assert status(replace(FINE, at_ms=60_001, waits=(young,))).faults(60) == []


@pytest.mark.parametrize("width", [80, 120])
def test_moves_are_shown_with_their_rows_rate_and_time_left_and_fit(width: int):
    found = shown(replace(status(FINE), moves=(STILL, COPYING, WAITING)), width)

    assert max(map(len, found)) <= width
    assert "…" not in "".join(found)
    rows = [line.split() for line in found]
    assert ["0-15,40", "s0", "s1", "copying", "1,234,567", "12,345,678", "54,321", "3", "min"] in rows
    assert ["1021", "s0", "s10", "waiting", "10", "-", "-", "-"] in rows
    assert ["0,2,4,6,8,10", "+26", "s0", "s1", "catching", "up", "7", "-", "-", "-"] in rows
    assert "    1021: 42 s before rows of s0 are deleted" in found


def test_a_move_that_stands_still_is_said_first_with_what_mends_it():
    moving = replace(status(replace(FINE, rejected=1)), moves=(replace(STILL, buckets="5"), COPYING))

    found, plain = " ".join(shown(moving, 120)), list(lines(moving, max_age_s=60))

    fault = (
        "s0: the move of 5 to s1 stands still: no mover has been at it for 75 s; start workers: they go on with it; "
    )
    assert plain[0] == f"fault: {fault}or run: pipeline move give-up 5"
    assert plain[1].startswith("fault: s0: 1 op was refused")
    assert found.index("stands still") < found.index("1 op was refused") < found.index("0-15,40")
    assert moving.as_json(60)["ok"] is False
    assert "move=0-15,40 from=s0 to=s1 state=copying rows=1,234,567 of=12,345,678 rate=54321 left=3 min" in "|".join(
        plain
    )


def test_of_many_moves_some_are_listed_and_the_others_counted():
    found = shown(replace(status(FINE), moves=tuple(replace(COPYING, buckets=str(n)) for n in range(50))), 80)

    assert "    and 44 more: pipeline move list" in found
