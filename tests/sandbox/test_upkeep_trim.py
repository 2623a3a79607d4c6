"""Trimming: a log keeps what any node may still need, and for ten minutes what a shard without replicas applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.admin import replica_absence
from pipeline.admin.upkeep import FLOOR_S, trim
from pipeline.client import Client
from pipeline.errors import ShardUnavailable
from pipeline.model.op import START
from pipeline.testing import Sandbox, sandbox

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
    monkeypatch.setattr(replica_absence, "fit_replicas", lambda client, shard, marks: away if shard == other else [])
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
