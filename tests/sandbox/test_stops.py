"""A paused shard applies nothing, loses nothing, says so, and goes on in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin import stops, upkeep
from pipeline.admin.migration import migrate
from pipeline.admin.stops import release
from pipeline.admin.why import why
from pipeline.apply.applier import Applier
from pipeline.config.settings import ApplySettings
from pipeline.errors import BadOp, PipelineError, StaleRead
from pipeline.reads.health import probe
from pipeline.shard import NodeSession
from pipeline.shard.records.stops import stops_of
from pipeline.testing import Sandbox

TABLES = {"event": {"shard_key": "who"}, "other": {"shard_key": "who"}, "s1": {"shard_key": "who"}}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read the stops before each batch."""
    monkeypatch.setattr("pipeline.apply.pace.READ_EVERY_S", 0.0)


@pytest.fixture
def event(box: Sandbox) -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note"))
    db.define_table("other", Field("who", "integer"))
    pipeline.define_tables(db)
    yield db.event
    db.close()


def worker(box: Sandbox, shard: str) -> Applier:
    return Applier(shard, box.client.nodes.primary(shard), box.log, ApplySettings())


def order(box: Sandbox, name: str) -> stops.Target:
    return stops.target_of(box.client, name)


def test_a_paused_shard_leaves_its_ops_in_the_log_and_says_why(box: Sandbox, event: Any):
    receipts = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(40)])
    stops.pause(box.client, order(box, "s0"), "disk swap")

    paused, other = worker(box, "s0").apply(), worker(box, "s1").apply()

    assert (paused.applied, paused.left > 0, paused.ring) == (0, True, False)
    assert "because s0 is paused" in paused.waiting
    assert "disk swap" in paused.waiting
    assert paused.waiting.endswith("run: pipeline resume s0")
    assert other.applied > 0
    assert {receipt.status() for receipt in receipts} == {"queued", "applied"}


def test_a_paused_shard_goes_on_at_once_after_a_resume(box: Sandbox, event: Any):
    receipts = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(40)])
    target = order(box, "s0")
    stops.pause(box.client, target)
    worker(box, "s0").apply()

    [lifted] = stops.resume(box.client, target)
    worker(box, "s0").apply()
    worker(box, "s1").apply()

    assert (lifted.scope, lifted.kind) == ("*", "paused")
    assert {receipt.status() for receipt in receipts} == {"applied"}
    assert "s0" in box.bell.rung


def test_a_second_pause_keeps_the_first_ones_time_and_reason(box: Sandbox):
    target = order(box, "s0")
    stops.pause(box.client, target, "first")
    before = stops_of(box.client.nodes.primary("s0"))

    stops.pause(box.client, target, "second")

    assert stops_of(box.client.nodes.primary("s0")) == before
    assert before[0].reason == "first"


def test_what_is_not_stopped_can_be_resumed_and_nothing_happens(box: Sandbox):
    assert stops.resume(box.client, order(box, "s0")) == []


def test_a_shard_without_the_table_of_stops_is_not_stopped(box: Sandbox, event: Any):
    receipts = pipeline.enqueue_bulk_insert(event, [{"who": who} for who in range(40)])
    for shard in ("s0", "s1"):
        session = box.client.nodes.primary(shard)
        with session.transaction():
            session.execute("DROP TABLE pipeline_stops")

    for shard in ("s0", "s1"):
        worker(box, shard).apply()

    assert {receipt.status() for receipt in receipts} == {"applied"}
    migrate(box.client)
    assert stops_of(box.client.nodes.primary("s0")) == []


def test_a_drain_waits_for_what_is_queued_and_then_pauses(box: Sandbox, event: Any):
    pipeline.enqueue_bulk_insert(event, [{"who": who} for who in range(40)])
    drained = stops.drain_and_pause(box.client, order(box, "s0"), timeout_s=60)

    first = next(drained)
    pipeline.enqueue_bulk_insert(event, [{"who": who} for who in range(40)])
    worker(box, "s0").apply()

    assert first > 0
    assert list(drained)[-1] == 0
    assert worker(box, "s0").apply().applied == 0
    with pytest.raises(PipelineError, match="is paused"):
        next(stops.drain_and_pause(box.client, order(box, "s0"), timeout_s=0))


def test_a_drain_that_runs_out_of_time_pauses_nothing(box: Sandbox, event: Any):
    pipeline.enqueue_bulk_insert(event, [{"who": who} for who in range(40)])

    *_, left = stops.drain_and_pause(box.client, order(box, "s0"), timeout_s=0)

    assert left > 0
    assert stops_of(box.client.nodes.primary("s0")) == []


def test_a_name_is_a_shard_or_a_table_and_never_both(box: Sandbox, event: Any):
    assert str(order(box, "s0")) == "shard s0"
    assert str(order(box, "event")) == "table event"
    assert order(box, "event").shards == ("s0", "s1")
    with pytest.raises(BadOp, match="shard:s1 or table:s1"):
        order(box, "s1")
    assert str(order(box, "shard:s1")) == "shard s1"
    assert str(order(box, "table:s1")) == "table s1"
    with pytest.raises(BadOp, match="did you mean 'event'"):
        order(box, "evnt")


def test_who_gave_the_order_is_recorded(box: Sandbox):
    stops.pause(box.client, order(box, "s0"))

    [stop] = stops_of(box.client.nodes.primary("s0"))

    assert stop.by_whom == stops.who()
    assert "@" in stop.by_whom
    assert stop.since_ms > 0


def aside(box: Sandbox) -> list[tuple[str, int]]:
    """Return how many ops each table has set aside, by state."""
    found: dict[str, int] = {}
    for shard in ("s0", "s1"):
        query = "SELECT state, COUNT(*) FROM pipeline_rejects GROUP BY state"
        for state, count in box.client.nodes.primary(shard).query(query):
            found[state] = found.get(state, 0) + count
    return sorted(found.items())


def apply_all(box: Sandbox) -> None:
    for shard in ("s0", "s1"):
        applier = worker(box, shard)
        for _ in range(20):
            applier.apply()


def go_on(box: Sandbox, name: str) -> int:
    """Do what `pipeline resume` does; return how many ops were released."""
    stops.resume(box.client, order(box, name))
    return sum(sum(release(box.client, shard, "ada")) for shard in ("s0", "s1"))


def test_a_paused_table_is_set_aside_and_everything_else_of_its_buckets_goes_on(box: Sandbox, event: Any):
    mine = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(20)])
    others = pipeline.enqueue_bulk_insert(event._db.other, [{"who": who} for who in range(20)])
    stops.pause(box.client, order(box, "event"), "wrong notes")

    apply_all(box)

    assert {receipt.status() for receipt in mine} == {"parked"}
    assert {receipt.status() for receipt in others} == {"applied"}
    assert box.log.dirty("s0") == box.log.dirty("s1") == 0
    assert go_on(box, "event") == 20
    assert {receipt.status() for receipt in mine} == {"replayed"}


def test_the_ops_of_a_paused_table_are_released_in_order_with_those_that_name_no_row(box: Sandbox, event: Any):
    stops.pause(box.client, order(box, "event"))
    row = pipeline.enqueue_insert(event, who=7, note="1")
    pipeline.enqueue_update(event.who == 7, shard_key=7, note=event.note + "2")
    apply_all(box)
    pipeline.enqueue_update(event.id == row.id, note=event.note + "3")
    stops.resume(box.client, order(box, "event"))

    # the stop is gone, and what it held back is not: a new op stays behind
    pipeline.enqueue_update(event.who == 7, shard_key=7, note=event.note + "4")
    apply_all(box)

    assert box.rows(event) == []
    assert go_on(box, "event") == 4
    assert [found["note"] for found in box.rows(event)] == ["1234"]
    last = pipeline.enqueue_update(event.id == row.id, note=event.note + "5")
    apply_all(box)
    assert last.status() == "applied"
    assert [found["note"] for found in box.rows(event)] == ["12345"]


def test_a_batch_says_why_it_set_ops_aside(box: Sandbox, event: Any):
    receipt = pipeline.enqueue_insert(event, who=7)
    [shard] = box.client.topology.shards_of(receipt.bucket)
    stops.pause(box.client, order(box, "event"))

    shown = worker(box, shard).apply().summary()

    assert shown["parked"] == 1
    assert "because event is paused" in str(shown["aside"])


def test_a_group_waits_as_a_whole_for_a_table_that_is_paused(box: Sandbox, event: Any):
    stops.pause(box.client, order(box, "event"))
    with pipeline.atomic():
        other = pipeline.enqueue_insert(event._db.other, who=7)
        pipeline.enqueue_insert(event, who=7, note="a")
    behind = pipeline.enqueue_delete(event._db.other.id == other.id)

    apply_all(box)

    assert (other.status(), behind.status()) == ("parked", "parked")
    go_on(box, "event")
    assert (other.status(), behind.status()) == ("replayed", "replayed")
    assert (box.rows("other"), [row["note"] for row in box.rows("event")]) == ([], ["a"])


def test_beyond_the_limit_the_ops_of_a_paused_table_stay_in_the_log(box: Sandbox, event: Any):
    receipts = pipeline.enqueue_bulk_insert(event, [{"who": 7, "note": f"{n}"} for n in range(30)])
    [shard] = box.client.topology.shards_of(receipts[0].bucket)
    stops.pause(box.client, order(box, "event"))
    applier = Applier(shard, box.client.nodes.primary(shard), box.log, ApplySettings(set_aside=10))

    outcomes = [applier.apply() for _ in range(3)]

    assert sum(count for _, count in aside(box)) == 10
    assert [receipt.status() for receipt in receipts] == ["parked"] * 10 + ["queued"] * 20
    assert "because event is paused" in outcomes[0].waiting
    go_on(box, "event")
    apply_all(box)
    assert [row["note"] for row in box.rows(event)] == [f"{n}" for n in range(30)]


def test_what_a_dead_resume_left_is_released_by_a_worker_s_chore(box: Sandbox, event: Any):
    mine = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(20)])
    stops.pause(box.client, order(box, "event"))
    apply_all(box)
    assert upkeep.release_waiting(box.client, "s0") == 0
    stops.resume(box.client, order(box, "event"))

    released = sum(upkeep.release_waiting(box.client, shard) for shard in ("s0", "s1"))

    assert released == 20
    assert {receipt.status() for receipt in mine} == {"replayed"}


def test_an_op_that_cannot_be_released_now_delays_its_own_bucket_only(
    box: Sandbox, event: Any, monkeypatch: pytest.MonkeyPatch
):
    mine = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(20)])
    locked = pipeline.enqueue_insert(event, who=7, note="locked")
    stops.pause(box.client, order(box, "event"))
    apply_all(box)
    real = NodeSession.execute

    def execute(session: NodeSession, sql: str) -> int:
        if "'locked'" in sql:
            raise pymysql.err.OperationalError(1205, "Lock wait timeout exceeded")
        return real(session, sql)

    with monkeypatch.context() as patch:
        patch.setattr(NodeSession, "execute", execute)
        patch.setattr("pipeline.clock.sleep_s", lambda for_s: None)
        go_on(box, "event")
        others = [receipt for receipt in mine if receipt.bucket != locked.bucket]
        assert {receipt.status() for receipt in others} == {"replayed"}
        assert locked.status() == "parked"

    assert go_on(box, "event") > 0
    assert {receipt.status() for receipt in [*mine, locked]} == {"replayed"}


def test_an_op_that_is_set_aside_says_what_stops_it(box: Sandbox, event: Any):
    receipts = [pipeline.enqueue_insert(event, who=7, note=note) for note in "ab"]
    stops.pause(box.client, order(box, "event"), "wrong notes")
    apply_all(box)

    for receipt in receipts:
        [sentence] = why(box.client, str(receipt)).sentences
        assert f"because event is paused (by {stops.who()}: wrong notes); run: pipeline resume event" in sentence


def test_a_paused_shard_releases_nothing(box: Sandbox, event: Any):
    mine = pipeline.enqueue_bulk_insert(event, [{"who": who, "note": "a"} for who in range(20)])
    stops.pause(box.client, order(box, "event"))
    apply_all(box)
    for shard in ("s0", "s1"):
        stops.pause(box.client, order(box, f"shard:{shard}"))

    assert go_on(box, "event") == 0
    assert {receipt.status() for receipt in mine} == {"parked"}


def test_a_read_of_ones_own_write_to_a_paused_table_is_marked_until_that_is_applied(box: Sandbox, event: Any):
    reader = pipeline.session_token()
    first = pipeline.enqueue_insert(event, who=7, note="a")
    apply_all(box)
    stops.pause(box.client, order(box, "event"))
    later = pipeline.enqueue_update(event.id == first.id, note="b")
    apply_all(box)

    reader.wrote(later)
    for after in (later, reader, reader, str(reader)):  # also what the session keeps of it from read to read
        with pipeline.read(event, 7, after=after) as db:
            assert [row.note for row in db(db.event).select()] == ["a"]
            assert (db.read_info.stale, db.read_info.reason) == (True, "set-aside")
    assert probe(box.client.nodes.primary("s0")).holding | probe(box.client.nodes.primary("s1")).holding == {
        later.bucket
    }
    with pytest.raises(StaleRead, match="set aside") as refused:
        pipeline.get(event, first.id, after=later, on_stale="error")
    assert refused.value.stage == "aside"

    go_on(box, "event")
    for after in (later, reader):
        with pipeline.read(event, 7, after=after) as db:
            assert [row.note for row in db(db.event).select()] == ["b"]
            assert not db.read_info.stale


def test_a_read_that_asks_for_nothing_set_aside_is_not_marked(box: Sandbox, event: Any):
    before = pipeline.enqueue_insert(event, who=7, note="a")
    apply_all(box)
    stops.pause(box.client, order(box, "event"))
    pipeline.enqueue_insert(event, who=7, note="b")
    apply_all(box)

    for after in (None, before):
        with pipeline.read(event, 7, after=after) as db:
            assert db(db.event).count() == 1
            assert not db.read_info.stale
