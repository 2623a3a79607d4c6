"""Trimming: a log keeps what any node may still need, and for ten minutes what a shard without replicas applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.deployments import Site, run, site

import pipeline
from pipeline import clock
from pipeline.admin import absence
from pipeline.admin import moving as movers
from pipeline.admin.dead import HEADS, Where, chosen, dead_ops, replay
from pipeline.admin.moving import orders
from pipeline.admin.upkeep import FLOOR_S, trim
from pipeline.client import Client
from pipeline.errors import Rejected, ShardUnavailable
from pipeline.model import START
from pipeline.shard.records import ledger_queries, replays
from pipeline.testing import Sandbox, sandbox

__all__ = ["site"]

Forward = Callable[[float], None]


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"))
    db.define_table("country", Field("name"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"event": {"shard_key": "who"}, "country": {"reference": True}}, shards=2, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Forward:
    """Let so many seconds pass on the wall clock since the test began."""
    began_ms = clock.wall_ms()
    monkeypatch.setattr(clock, "wall_ms", lambda: began_ms)
    return lambda seconds: monkeypatch.setattr(clock, "wall_ms", lambda: began_ms + round(seconds * 1000))


def kept(box: Sandbox, bucket: int) -> int:
    """Return how many entries a bucket's log holds."""
    return len(box.log.read({bucket: START}, {bucket: 100})[bucket])


def minded(client: Client, shard: str, forward: Forward, begin_s: int, end_s: int) -> None:
    """Let time pass while a worker looks each minute at what it may trim."""
    for second in range(begin_s, end_s, 60):
        forward(second)
        assert trim(client, shard) == 0
    forward(end_s)


def test_a_shard_without_replicas_keeps_what_it_applied_for_ten_minutes(db: Any, box: Sandbox, forward: Forward):
    assert FLOOR_S == 600, "as the documents say: a dump of the primary may be that old"
    first = pipeline.enqueue_insert(db.event, who=7)
    [shard] = box.client.topology.shards_of(first.bucket)
    box.drain()

    assert trim(box.client, shard) == 0
    pipeline.enqueue_insert(db.event, who=7)
    box.drain()
    minded(box.client, shard, forward, 60, 599)
    assert trim(box.client, shard) == 0
    assert kept(box, first.bucket) == 2

    forward(600)
    assert trim(box.client, shard) == 1
    assert kept(box, first.bucket) == 1, "what was applied after the first look is younger"


def test_the_log_of_reference_tables_is_trimmed_only_behind_every_shard(db: Any, box: Sandbox, forward: Forward):
    """I7: one log feeds all shards, so the word of one is not enough."""
    receipt = pipeline.enqueue_insert(db.country, name="Atlantis")
    quick, slow = box.client.topology.shards
    box._appliers[quick].apply()
    trim(box.client, quick)

    minded(box.client, quick, forward, 60, FLOOR_S)
    assert trim(box.client, quick) == 0
    assert kept(box, receipt.bucket) == 1

    box.log.mark_dirty(slow, [receipt.bucket])
    box.drain()
    minded(box.client, quick, forward, FLOOR_S + 60, 2 * FLOOR_S + 60)
    assert trim(box.client, quick) == 1
    assert len(box.rows("country")) == 1


def test_the_log_of_reference_tables_is_kept_while_a_replica_of_another_shard_is_away(
    db: Any, box: Sandbox, forward: Forward, monkeypatch: pytest.MonkeyPatch
):
    receipt = pipeline.enqueue_insert(db.country, name="Atlantis")
    box.drain()
    quick, other = box.client.topology.shards
    away = [(box.client.nodes.primary(other), None)]
    monkeypatch.setattr(absence, "fit_replicas", lambda client, shard, marks: away if shard == other else [])
    trim(box.client, quick)

    minded(box.client, quick, forward, 60, FLOOR_S)

    assert trim(box.client, quick) == 0
    assert kept(box, receipt.bucket) == 1


def test_a_shard_that_is_away_stops_no_trimming_but_that_of_reference_tables(
    db: Any, box: Sandbox, forward: Forward, monkeypatch: pytest.MonkeyPatch
):
    own, reference = pipeline.enqueue_insert(db.event, who=7), pipeline.enqueue_insert(db.country, name="Atlantis")
    box.drain()
    [shard] = box.client.topology.shards_of(own.bucket)
    primary = box.client.nodes.primary
    monkeypatch.setattr(box.client.nodes, "primary", lambda name: primary(name) if name == shard else away(name))
    trim(box.client, shard)

    minded(box.client, shard, forward, 60, FLOOR_S)

    assert trim(box.client, shard) == 1
    assert (kept(box, own.bucket), kept(box, reference.bucket)) == (0, 1)


def away(shard: str) -> Any:
    raise ShardUnavailable(shard, "it is away")


def test_what_was_refused_long_ago_and_holds_no_row_is_given_up_and_what_holds_one_stays():
    rules = {"shard_key": "owner", "unique": [["owner", "name"]]}
    tables = {"loose": {**rules, "on_reject": "skip"}, "held": rules}
    db = DAL("sqlite:memory", bigint_id=True)
    for name in tables:
        db.define_table(name, Field("owner", "integer"), Field("name"))
    with sandbox(tables, shards=1) as box:
        box.client.define_tables(db)
        made = {name: [box.client.enqueue_insert(db[name], owner=7, name="x") for _ in range(2)] for name in tables}
        box.drain()
        refused = {name: receipts[1] for name, receipts in made.items()}
        later = box.client.enqueue_update(db.held.id == refused["held"].id, name="y")
        box.drain()
        session = box.client.nodes.primary("s0")

        for days in (89, 2):  # 91 in all
            trim(box.client, "s0")
            assert [one.status() for one in (*refused.values(), later)] == ["rejected", "rejected", "parked"]
            session.execute(f"UPDATE pipeline_rejects SET changed_ms = changed_ms - {days * 86_400_000}")
            session.db.commit()
        trim(box.client, "s0")

        assert [one.status() for one in (*refused.values(), later)] == ["dropped", "rejected", "parked"]


# what is set aside is not kept for ever ---------------------------------------------------------------------------


@pytest.fixture
def refusing() -> Iterator[tuple[Sandbox, Any]]:
    """A table whose refused ops hold no row, and one whose ops do; each has a row with the code A."""
    with sandbox({"sale": {"shard_key": "who", "on_reject": "skip"}}, shards=1, buckets=4) as box:
        db = DAL("sqlite:memory", bigint_id=True)
        for name in ("sale", "note"):
            db.define_table(name, Field("who", "integer"), Field("code", unique=True), Field("story", "text"))
        pipeline.define_tables(db)
        for table in (db.sale, db.note):
            pipeline.enqueue_insert(table, who=1, code="A")
        yield box, db
        db.close()


def aged(box: Sandbox, days: int) -> None:
    """Let what is set aside have been set aside some days ago."""
    with box.client.nodes.primary("s0").transaction() as session:
        session.execute(f"UPDATE pipeline_rejects SET changed_ms = changed_ms - {days * 86_400_000}")


@pytest.mark.parametrize(
    ("days", "age_days", "dropped"), [(90, 91, True), (90, 89, False), (7, 8, True), (0, 900, False)]
)
def test_a_refused_op_that_holds_no_row_is_given_up_after_some_days_and_no_other(
    refusing: tuple[Sandbox, Any], caplog: pytest.LogCaptureFixture, days: int, age_days: int, dropped: bool
):
    box, db = refusing
    skipped, holding = (pipeline.enqueue_insert(table, who=1, code="A") for table in (db.sale, db.note))
    behind = pipeline.enqueue_update(db.note.id == holding.id, code="B")
    box.drain()
    aged(box, age_days)
    settings = box.client.settings
    box.client.settings = replace(settings, apply=replace(settings.apply, rejects_days=days))

    trim(box.client, "s0")

    assert skipped.status() == ("dropped" if dropped else "rejected")
    assert (holding.status(), behind.status()) == ("rejected", "parked")
    assert (f"rejects_forgotten shard=s0 ops=1 days={days}" in caplog.text) is dropped
    with pytest.raises(Rejected, match="given up by .apply. rejects_days: UNIQUE" if dropped else "rejected: UNIQUE"):
        skipped.wait()


def test_what_was_dropped_a_week_ago_leaves_the_shard_and_what_waits_stays(refusing: tuple[Sandbox, Any]):
    box, db = refusing
    for table in (db.sale, db.note):
        pipeline.enqueue_insert(table, who=1, code="A")
    box.drain()
    list(replay(box.client, chosen(box.client, Where(table="sale"), HEADS), drop=True))

    left = []
    for days in (6, 2):
        aged(box, days)
        trim(box.client, "s0")
        left.append(box.client.nodes.primary("s0").query("SELECT table_name FROM pipeline_rejects ORDER BY 1"))

    assert left == [[("note",), ("sale",)], [("note",)]]


def bounded_to(box: Sandbox, megabytes: int) -> None:
    settings = box.client.settings
    box.client.settings = replace(settings, apply=replace(settings.apply, rejects_mb=megabytes))


def bytes_aside(box: Sandbox) -> int:
    [(size,)] = box.client.nodes.primary("s0").query("SELECT SUM(LENGTH(op) + LENGTH(reason)) FROM pipeline_rejects")
    return int(size)


def test_more_than_may_be_set_aside_goes_the_oldest_first_and_what_is_parked_never(
    refusing: tuple[Sandbox, Any], caplog: pytest.LogCaptureFixture
):
    box, db = refusing
    holding = pipeline.enqueue_insert(db.note, who=1, code="A", story="n" * 850_000)
    behind = pipeline.enqueue_update(db.note.id == holding.id, story="m" * 850_000)
    refused = []
    for _ in range(4):
        refused.append(pipeline.enqueue_insert(db.sale, who=1, code="A", story="s" * 300_000))
        box.drain()
        aged(box, 1)
    bounded_to(box, 3)
    trim(box.client, "s0")
    assert [one.status() for one in refused] == ["rejected"] * 4  # 1.8 MB and 1.2 MB

    refused.append(pipeline.enqueue_insert(db.sale, who=1, code="A", story="s" * 300_000))
    box.drain()
    box.log.release_lease("rejects:s0", "1")
    trim(box.client, "s0")

    assert [one.status() for one in refused] == ["dropped"] + ["rejected"] * 4
    assert (holding.status(), behind.status()) == ("rejected", "parked")
    assert "rejects_given_up shard=s0 ops=1 limit_mb=3" in caplog.text
    assert bytes_aside(box) < 3_000_000
    assert ledger_queries.counts(box.client.nodes.primary("s0"))["given_up"] == 1
    with pytest.raises(Rejected, match=r"was rejected: given up by \[apply\] rejects_mb: .*UNIQUE"):
        refused[0].wait()
    [gone] = dead_ops(box.client, Where(state="dropped"))
    assert gone.op.entry.payload == b"{}"


def test_settled_ops_lose_their_values_before_a_refused_one_goes(refusing: tuple[Sandbox, Any]):
    box, db = refusing
    dropped, kept = (pipeline.enqueue_insert(db.sale, who=1, code="A", story="s" * 700_000) for _ in range(2))
    box.drain()
    first, _ = sorted(one.op.place for one in dead_ops(box.client, Where()))
    list(replay(box.client, {"s0": {first[0]: [first[1]]}}, drop=True))
    bounded_to(box, 1)

    trim(box.client, "s0")

    assert (dropped.status(), kept.status()) == ("dropped", "rejected")
    assert 700_000 < bytes_aside(box) < 800_000
    assert ledger_queries.counts(box.client.nodes.primary("s0"))["given_up"] == 0


def test_nothing_goes_of_a_bucket_that_two_shards_compare(refusing: tuple[Sandbox, Any]):
    box, db = refusing
    moving, other = (pipeline.enqueue_insert(db.sale, who=who, code="A", story="s" * 700_000) for who in (1, 2))
    box.drain()
    aged(box, 91)
    session = box.client.nodes.primary("s0")
    with session.transaction():
        assert replays.bound_rejects(session, 0, [moving.bucket]) == (1, 1)
        assert replays.drop_old_rejects(session, 90, [moving.bucket]) == 0
        replays.forget_settled(session, -1, [moving.bucket, other.bucket])

    assert (moving.status(), other.status()) == ("rejected", "dropped")


@pytest.mark.parametrize("trimmed", ["s0", "s1"])
def test_what_was_settled_long_ago_stays_on_both_shards_while_its_bucket_moves(
    site: Site, monkeypatch: pytest.MonkeyPatch, trimmed: str
) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)
    client = run(site, *range(8))
    [bucket, *_] = client.topology.buckets_of("s0")
    with client.nodes.primary("s0").transaction() as session:
        session.execute(
            "INSERT INTO pipeline_rejects (bucket, epoch, seq, producer, producer_seq, state, table_name, row_key,"
            f" reason, op, rejected_ms, changed_ms) VALUES ({bucket}, 1, 0, 1, 1, 'dropped', '', '', '', '', 1, 1)"
        )
    steps = orders.order_move(client, [bucket], "s1", "me", keep_s=0).steps()
    while not client.nodes.primary("s1").query("SELECT * FROM pipeline_rejects"):
        next(steps)

    trim(client, trimmed)

    assert len(client.nodes.primary(trimmed).query("SELECT * FROM pipeline_rejects")) == 1
    assert [*steps][-1].stage == "over"
    trim(client, "s1")
    assert client.nodes.primary("s1").query("SELECT * FROM pipeline_rejects") == []
