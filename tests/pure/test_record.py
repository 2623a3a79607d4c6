"""The record of a deployment goes through Redis and into JSON with nothing lost, and what is unknown stays unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from pipeline import clock
from pipeline.admin.observe import DAY_S, RECENT_S, Spans
from pipeline.admin.observe.published import (
    FRESH_MS,
    NO_HISTORY,
    Point,
    news_of,
    publish,
    read_histories,
    read_record,
    summary,
    with_news,
)
from pipeline.admin.observe.readings import ENDS_S, Queues
from pipeline.admin.observe.record import (
    DEEPEST,
    HOTTEST,
    MOST_WAITS,
    BatchRecord,
    BucketRecord,
    NodeRecord,
    PoisonRecord,
    ReadCount,
    Record,
    RedisRecord,
    ShardRecord,
    TableRecord,
)
from pipeline.model import INSERT, START, Entry, Op, Position, encode
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.shared_state import MOST_COUNTERS, MOST_OF_DAY, MOST_RECENT
from pipeline.reads.health import NodeState, Report

PAUSED = WaitReason("paused", "s0", "s0", "by ann: a disk swap", 1_000, buckets=3)
S0 = ShardRecord(
    "s0",
    5_000,
    depth=7,
    oldest_ms=120,
    rate=3.25,
    rejected=1,
    batch=BatchRecord(2.0, 3.5, 8.0, 20.0),
    tables=(TableRecord("event", 3.25, 1, "halted"),),
    buckets=(BucketRecord(9, 7),),
    nodes=(NodeRecord("s0", "primary", NodeState.IN), NodeRecord("s0-r0", lag_ops=3, lag_ms=400, reads_share=0.75)),
    waits=(PAUSED,),
    poison=(PoisonRecord(9, 2, 4_000),),
)
RECORD = Record(5_000, RedisRecord(0.25, 1 << 30), (S0,), (ReadCount("s0-r0", "replica", "fresh", 12),), "workers")


def test_a_published_record_is_read_back_equal():
    log = MemoryLog()

    publish(log, RECORD, {})

    found = read_record(log, ["s0"])
    assert found is not None
    assert found.record == RECORD
    assert found.fresh


def test_a_record_that_nobody_renews_is_not_fresh_and_then_is_gone():
    log = MemoryLog()
    publish(log, RECORD, {})

    log.ahead_ms += FRESH_MS + 1
    old = read_record(log, ["s0"])
    log.ahead_ms += 3_600_000
    gone = read_record(log, ["s0"])

    assert old is not None
    assert not old.fresh
    assert FRESH_MS < old.age_ms < 2 * FRESH_MS
    assert gone is None


def test_a_shard_that_nobody_has_published_is_unknown_and_not_empty():
    log = MemoryLog()
    publish(log, RECORD, {})

    found = read_record(log, ["s0", "s1"])

    assert found is not None
    s0, s1 = found.record.shards
    assert s0 == S0
    assert (s1.shard, s1.depth, s1.rejected) == ("s1", None, None)
    assert ("s1", "no worker has published it") in found.record.unknown


def test_words_of_another_version_are_no_record():
    log = MemoryLog()
    publish(log, RECORD, {})
    log.publish_records({"s0": '{"shard": 5}'}, {"s0": ("[1]", "junk")})

    assert read_record(log, ["s0"]) is None
    assert read_histories(log, {"s0": NO_HISTORY})["s0"] == ((), ())


def test_the_json_has_every_field_and_says_what_mends_a_wait():
    told = json.loads(json.dumps(RECORD.as_json()))

    assert told["version"] == 1
    assert told["ok"] is False
    assert told["faults"][0]["fix"] == "run: pipeline dead list"
    [shard] = told["shards"]
    assert shard["nodes"][1]["lag_ms"] == 400
    assert shard["lost"] is None
    assert shard["waits"][0]["sentence"] == PAUSED.sentence()
    assert shard["waits"][0]["command"] == "run: pipeline resume s0"


def test_a_span_keeps_the_most_that_was_queued_and_the_mean_of_the_rates():
    first, second = Point(1, 5, 900, 10.0, None, 0, None), Point(2, 9, None, 20.0, None, 1, 40)
    third = Point(3, None, 7, None, 4.0, 1, 9)

    assert summary([first, second, third]) == Point(3, 9, 900, 15.0, 4.0, 1, 40)
    assert summary([Point(1, *[None] * 6)]) == Point(1, *[None] * 6)


def test_a_history_has_a_point_for_each_span_and_keeps_the_newest():
    log, spans, now_s = MemoryLog(), Spans(0.0), 0.0

    while now_s < 2 * DAY_S:
        now_s += 1.0
        record = replace(RECORD, shards=(replace(S0, at_ms=int(now_s), depth=int(now_s) % 100),))
        publish(log, record, spans.add(record, now_s))

    found = read_histories(log, {"s0": NO_HISTORY})["s0"]
    assert [point.at_ms for point in found.day] == [DAY_S, 2 * DAY_S]
    assert [point.depth for point in found.day] == [99, 99]
    assert len(found.recent) == 2 * DAY_S / RECENT_S
    assert found.recent[-1].at_ms == 2 * DAY_S


def test_a_history_that_is_known_is_the_same_read_in_part_and_read_whole_where_it_does_not_go_on():
    class Spied(MemoryLog):
        def histories(self, names: Iterable[str], most: int | None = None) -> dict[str, tuple[list[str], list[str]]]:
            wanted = [*names]
            asked.extend([most] * len(wanted))
            return super().histories(wanted, most)

    asked: list[int | None] = []
    log, known, whole = Spied(), NO_HISTORY, 0
    for n in range(900):
        if n == 700:
            log._server.history.clear()  # Redis has forgotten
        point = Point(n, n, None, None, None, 0, None)
        publish(log, replace(RECORD, shards=(S0,)), {"s0": (point, point if n % 60 == 0 else None)})
        if n % 40 < 20 or n % 3 == 0:  # now and then more is new than is read in part
            asked.clear()
            [known] = read_histories(log, {"s0": known}).values()
            whole += None in asked
            assert known == read_histories(log, {"s0": NO_HISTORY})["s0"], n

    assert len(known.recent) == MOST_RECENT
    assert whole < 100


def test_all_that_is_published_of_a_shard_keeps_to_two_megabytes():
    log, name, wide = MemoryLog(), "\U0001f375" * 64, 2**53  # the longest name that MariaDB takes
    text, point = name * 16, Point(wide, wide, wide, wide / 10, wide / 10, wide, wide)
    shard = replace(
        S0,
        tables=(TableRecord(name, wide / 10, wide, text),) * HOTTEST,
        buckets=(BucketRecord(wide, wide),) * DEEPEST,
        nodes=(NodeRecord(name, unfit=text, why=text),) * 16,
        waits=(WaitReason("breaker", name, name, text, wide, after=text),) * MOST_WAITS,
        poison=(PoisonRecord(wide, wide, wide),) * DEEPEST,
        why=text,
    )
    for _ in range(MOST_OF_DAY):
        publish(log, replace(RECORD, shards=(shard,)), {"s0": (point, point)})
    log.finish("s0", {}, counts={f"enqueued direct insert {n} {name}": wide for n in range(MOST_COUNTERS)})

    recent, day = log.histories(["s0"])["s0"]
    texts = [log.records(["s0"])[1]["s0"][1], *recent, *day, *(f"{k}{n}" for k, n in log.counts("s0").items())]

    assert len(texts) == 1 + MOST_RECENT + MOST_OF_DAY + MOST_COUNTERS
    assert sum(len(one.encode()) for one in texts) < 2_000_000


def test_a_queue_of_any_length_is_measured_by_its_ends_and_its_head_read_once():
    class Spied(MemoryLog):
        wanted = 0

        def heads(self, after: Mapping[int, Position]) -> dict[int, Entry]:
            self.wanted += len(after)
            return super().heads(after)

    log, payload = Spied(), encode(Op(INSERT, "t", "0" * 64, 1_000.0, id=1))
    for bucket in range(DEEPEST + 10):
        log._server.logs[bucket] = [Entry(bucket, Position(1, n), 0, 0, payload) for n in range(1, bucket + 100)]
    marks = dict.fromkeys(range(DEEPEST + 20), START)
    queues = Queues(log)

    first, again = queues.queue("s0", marks), queues.queue("s0", marks)

    assert first.depth == again.depth == sum(bucket + 99 for bucket in range(DEEPEST + 10))
    assert [one.bucket for one in first.deepest] == list(range(DEEPEST + 9, 9, -1))
    assert first.oldest_ms is not None
    assert log.wanted == DEEPEST + 10


def test_between_two_looks_at_all_logs_only_those_are_looked_at_that_may_have_a_queue(monkeypatch: pytest.MonkeyPatch):
    asked = list[set[int]]()

    class Spied(MemoryLog):
        def queued(self, after: Mapping[int, Position], up_to: Mapping[int, Position] = {}) -> dict[int, int]:
            asked.append(set(after))
            return super().queued(after, up_to)

    log, payload, now_s = Spied(), encode(Op(INSERT, "t", "0" * 64, 1_000.0, id=1)), 100.0
    monkeypatch.setattr(clock, "mono_s", lambda: now_s)
    log._server.logs[3] = [Entry(3, Position(1, 0), 0, 0, payload)]
    queues, marks = Queues(log), dict.fromkeys(range(10), START)

    depths = [queues.queue("s0", marks).depth]
    log._server.logs[5] = [Entry(5, Position(1, 0), 0, 0, payload)]
    log.mark_dirty("s0", [5, 99])
    depths.append(queues.queue("s0", marks).depth)
    log._server.logs[7] = [Entry(7, Position(1, 0), 0, 0, payload)]
    now_s += ENDS_S
    depths.append(queues.queue("s0", marks).depth)

    assert asked == [set(range(10)), {3, 5}, set(range(10))]
    assert depths == [1, 2, 3], "the last one's mark was lost"


def test_a_replica_that_readers_avoid_has_the_time_since_which_it_lags():
    log = MemoryLog()
    reports = {
        "s0-r0": Report(lag_ms=9, stalled=True),
        "s0-r1": Report(lag_ms=9),
        "s0-r2": Report(lag_ms=9, stalled=True),
    }
    log.publish_health({node: report.to_json() for node, report in reports.items()}, 60_000)
    for node in ("s0-r0", "s0-r1"):
        log.note_seen(node, json.dumps({"with_primary_ms": 77, "looked_ms": 99, "target": {}}))
    log.note_seen("s0-r2", "junk")

    found = with_news([NodeRecord(node) for node in reports], news_of(log))  # type: ignore[arg-type]  # as a RedisLog

    assert [node.behind_since_ms for node in found] == [77, None, None]
