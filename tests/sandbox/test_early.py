"""Ops that need older ones of other buckets, in this process: how long they wait, and what waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline import clock
from pipeline.apply.applier import Applier
from pipeline.config.settings import ApplySettings
from pipeline.testing import Sandbox, sandbox


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("note", unique=True))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"event": {"shard_key": "who"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def test_an_op_is_not_rejected_because_its_server_was_away_for_longer_than_it_may_wait(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_buckets(box)
    taken = pipeline.enqueue_insert(db.event, who=first, note="a")
    box.drain()
    pipeline.enqueue_delete((db.event.id == taken.id) & (db.event.who == first))
    renewed = pipeline.enqueue_insert(db.event, who=second, note="a")
    worker = Applier("s0", box.client.nodes.primary("s0"), box.log, ApplySettings())

    for away_s in (0, 3_600):
        now_s = clock.mono_s
        monkeypatch.setattr(clock, "mono_s", lambda now_s=now_s, away_s=away_s: now_s() + away_s)
        box.log.mark_dirty("s0", [taken.bucket, renewed.bucket])
        box.log.postpone("s0", [taken.bucket], 3_600_000)
        assert any(worker.apply().buckets for _ in clock.polls(20))
        assert renewed.status() == "queued"
    monkeypatch.undo()
    box.log.postpone("s0", [taken.bucket], 0)
    box.drain()

    assert renewed.status() == "applied"
    assert [row["note"] for row in box.rows("event")] == ["a"]


def two_buckets(box: Sandbox) -> tuple[int, int]:
    """Return two shard keys of different buckets."""
    bucket_of = box.client.topology.bucket_of
    return 0, next(who for who in range(1, 100) if bucket_of("event", who) != bucket_of("event", 0))
