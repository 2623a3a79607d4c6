"""Ops larger than the smallest limit on their way are refused at the call, whatever the call; nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadOp, LogUnavailable
from pipeline.reads.health import Report
from pipeline.testing import Drained, Sandbox, sandbox

MB = 1_000_000


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("page", Field("who", "integer"), Field("body", "text"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"page": {"shard_key": "who"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def takes(box: Sandbox, **bytes_of: int) -> None:
    """Publish how large a statement each node takes, as the prober does."""
    reports = {node.replace("_", "-"): Report(statement_bytes=size).to_json() for node, size in bytes_of.items()}
    box.log.publish_health(reports, 60_000)


CALLS: dict[str, Callable[[Any, str], Any]] = {
    "insert": lambda db, body: pipeline.enqueue_insert(db.page, who=7, body=body),
    "insert with a key": lambda db, body: pipeline.enqueue_insert(db.page, who=7, body=body, idempotency_key="k"),
    "durable insert": lambda db, body: pipeline.enqueue_insert(db.page, {"who": 7, "body": body}, durability="fsync"),
    "bulk": lambda db, body: pipeline.enqueue_bulk_insert(db.page, [{"who": 7, "body": body}]),
    "update": lambda db, body: pipeline.enqueue_update(db.page.id == 5, body=body, shard_key=7),
    "upsert": lambda db, body: pipeline.enqueue_upsert(db.page, id=5, who=7, body=body, key=["id"], shard_key=7),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("held", [False, True])
def test_an_op_that_a_replica_could_not_take_is_refused_with_the_node_and_its_setting(
    db: Any, box: Sandbox, call: Callable[[Any, str], Any], held: bool
):
    takes(box, s0=16 * MB, s0_r1=MB)
    waiting = box.client.held()

    with (
        box.client.holding(waiting) if held else nullcontext(),
        pytest.raises(BadOp, match=r"bytes, and max_allowed_packet of node 's0-r1' is 1,000,000: split the op"),
    ):
        call(db, "x" * MB)

    assert len(waiting) == 0
    assert box.enqueued() == []
    call(db, "x" * (MB // 2))
    assert box.drain() == Drained(1, 0)


def test_an_op_that_redis_could_not_take_is_refused_with_its_setting(db: Any, box: Sandbox):
    takes(box, s0=16 * MB)
    box.log.most_bulk_bytes = 2 * MB

    with pytest.raises(BadOp, match=r"bytes, and proto-max-bulk-len of Redis is 2,000,000: split the op"):
        pipeline.enqueue_insert(db.page, who=7, body="x" * (2 * MB))

    pipeline.enqueue_insert(db.page, who=7, body="x" * (2 * MB - 100_000))
    assert len(box.enqueued()) == 1


def test_quotes_count_twice(db: Any, box: Sandbox):
    takes(box, s0=MB)
    pipeline.enqueue_insert(db.page, who=7, body='"' * 300_000)

    with pytest.raises(BadOp, match="max_allowed_packet"):
        pipeline.enqueue_insert(db.page, who=7, body="'" * 600_000)

    assert box.drain() == Drained(1, 0)


def test_a_group_is_as_large_as_its_members_together(db: Any, box: Sandbox):
    takes(box, s0=MB)

    with pytest.raises(BadOp, match="max_allowed_packet"), pipeline.atomic():
        pipeline.enqueue_bulk_insert(db.page, [{"who": 7, "body": "x" * 300_000}] * 4)

    assert box.enqueued() == []


def test_a_group_has_at_most_ten_thousand_ops(db: Any, box: Sandbox):
    with pytest.raises(BadOp, match="at most 10,000 ops"), pipeline.atomic():
        pipeline.enqueue_bulk_insert(db.page, [{"who": 7}] * 10_001)

    assert box.enqueued() == []
    with pipeline.atomic():
        pipeline.enqueue_bulk_insert(db.page, [{"who": 7}] * 10_000)
    assert box.drain() == Drained(1, 0)
    assert len(box.rows("page")) == 10_000


def test_a_write_names_at_most_ten_thousand_values(db: Any, box: Sandbox):
    for call in (pipeline.enqueue_delete, lambda query: pipeline.enqueue_update(query, body="x")):
        with pytest.raises(BadOp, match="at most 10,000 values, not 10,001"):
            call((db.page.who == 7) & db.page.id.belongs(list(range(1, 10_002))))
        call((db.page.who == 7) & db.page.id.belongs(list(range(1, 10_001))))

    assert box.drain() == Drained(2, 0)


@pytest.mark.parametrize("silent", [False, True], ids=["nothing is published", "Redis does not answer"])
def test_without_a_report_the_limit_of_a_worker_holds(
    db: Any, box: Sandbox, monkeypatch: pytest.MonkeyPatch, silent: bool
):
    def away(*_: Any) -> Any:
        raise LogUnavailable("away")

    if silent:
        monkeypatch.setattr(box.log, "health", away)
        monkeypatch.setattr(box.log, "largest_bytes", away)

    with pytest.raises(BadOp, match="the largest statement of a worker is 16,000,000: split the op"):
        pipeline.enqueue_insert(db.page, who=7, body="x" * (16 * MB))

    pipeline.enqueue_insert(db.page, who=7, body="x" * (15 * MB))
    assert len(box.enqueued()) == 1
