"""Records and their histories are published and read back with their age; what there is too much of goes."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from support.servers.log_users import as_shipped

from pipeline.model import Position
from pipeline.oplog import Log
from pipeline.oplog.redis.log import RedisLog
from pipeline.oplog.shared_state import MOST_COUNTERS, MOST_HOSTS, MOST_NOTES, MOST_OF_DAY, MOST_RECENT


def test_a_record_replaces_the_one_before_and_has_an_age(log: Log):
    log.publish_records({"s0": "old", "*": "all"})
    log.publish_records({"s0": "new words"})

    now_ms, found = log.records(["*", "s0", "s1"])

    assert {name: text for name, (_, text) in found.items()} == {"*": "all", "s0": "new words"}
    assert all(0 <= now_ms - at_ms < 60_000 for at_ms, _ in found.values())


def test_the_points_of_a_history_come_in_order_and_are_bounded(log: Log):
    for n in range(MOST_OF_DAY + 5):
        log.publish_records({"s0": "x", "s1": "y"}, {"s0": (f"recent {n}", f"day {n}")})

    recent, day = log.histories(["s0"])["s0"]

    assert recent == [f"recent {n}" for n in range(MOST_OF_DAY + 5 - MOST_RECENT, MOST_OF_DAY + 5)]
    assert day == [f"day {n}" for n in range(5, MOST_OF_DAY + 5)]
    assert log.histories(["s0"], 2)["s0"] == (recent[-2:], day[-2:])
    assert log.histories(["s1"])["s1"] == log.histories(["s1"], 2)["s1"] == ([], [])


def test_an_empty_point_adds_none(log: Log):
    log.publish_records({"s0": "x"}, {"s0": ("only recent", "")})

    assert log.histories(["s0"])["s0"] == (["only recent"], [])


def test_counters_add_up_with_what_is_finished_and_are_bounded(log: Log):
    log.finish("s0", {4: Position(1, 0)}, counts={"applied insert my table": 3, "batches": 1})
    log.finish("s0", {}, counts={"applied insert my table": 2})
    log.finish("s0", {}, counts={f"rejected t{n}": 1 for n in range(MOST_COUNTERS)})
    log.finish("s0", {}, counts={"batches": 1, "one too many": 1})

    found = log.counts("s0")

    assert found["applied insert my table"] == 5
    assert found["batches"] == 2
    assert len(found) == MOST_COUNTERS
    assert log.counts("s1") == {}


def test_notes_of_batches_are_kept_the_newest_first_and_bounded(log: Log):
    log.finish("s0", {4: Position(1, 0)}, note="0 old")
    log.finish("s0", {4: Position(1, 1)}, counts={"batches": 1})
    for n in range(MOST_NOTES):
        log.finish("s0", {}, note=f"{n} note")

    found = log.batches("s0")

    assert (len(found), found[0], found[-1]) == (MOST_NOTES, f"{MOST_NOTES - 1} note", "0 note")
    assert log.counts("s0") == {"batches": 1}
    assert log.batches("s1") == []


def test_hosts_say_what_waits_with_the_time_and_are_bounded(log: Log):
    log.note_host("web w1", "old")
    log.note_host("web w1", "new words")
    log.note_host("worker w1", "{}")
    for n in range(MOST_HOSTS):
        log.note_host(f"web h{n}", "more")
    log.note_host("web w1", "known ones go on")

    now_ms, _ = log.records([])
    found = log.hosts()

    assert found["web w1"][1] == "known ones go on"
    assert found["worker w1"][1] == "{}"
    assert all(0 <= now_ms - at_ms < 60_000 for at_ms, _ in found.values())
    assert len(found) == MOST_HOSTS


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_the_shipped_rights_of_web_processes_are_enough_to_count_and_to_say_what_waits(
    kind: str, log_server: Callable[[str], object]
):
    log = RedisLog(as_shipped(log_server(kind), "web"), prefix=f"pl:t{uuid4().hex[:12]}", timeout_s=5)

    log.finish("s0", {}, delay_ms=1, counts={"enqueued direct insert t": 2})
    log.note_host("web w1", "{}")

    assert log.counts("s0") == {"enqueued direct insert t": 2}
    assert log.hosts()["web w1"][1] == "{}"
    log.close()
