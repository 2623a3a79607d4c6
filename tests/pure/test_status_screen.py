"""The status says first what is wrong, and fits any terminal from 80 columns on."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.admin.observe.record import NodeRecord, OpFault, ReadCount, Record, RedisRecord, ShardRecord
from pipeline.cli.status_screen import lines, screen
from pipeline.model.wait_reason import WaitReason
from pipeline.reads.health.report import NodeState

REPLICA = NodeRecord("s0-r0", "replica", NodeState.IN, 123_456, 1_400, 40_000, 300)
NODES = (NodeRecord("s0", "primary"), REPLICA, REPLICA)
FINE = ShardRecord("s0", 0, 1_234_567, False, 40, 256, 12_345.0, rejected=0, lost=0, nodes=NODES)
SCHEMA = WaitReason("schema", "s0", "purchase", "Unknown column 'note' in 'field list'", 1_764_322_222_000, buckets=3)


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
    assert any(line.split()[:2] == ["shard", "queued"] for line in found)


def test_a_wide_screen_has_replicas_beside_their_shard():
    assert any("lost  replica" in line for line in shown(status(FINE), 120))
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


def test_where_nothing_is_wrong_it_says_so():
    assert any("nothing is wrong" in line for line in shown(status(FINE), 80))
    assert status(FINE).faults(60) == []


@pytest.mark.parametrize(
    ("shard", "what"),
    [
        (replace(FINE, rejected=17), "17 ops were refused for good"),
        (replace(FINE, lost=1), "1 op was lost by Redis"),
        (replace(FINE, waits=(WaitReason("breaker", "s0", "event", "no"),)), "event is halted: no"),
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
