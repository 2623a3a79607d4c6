"""The orders of `pipeline top`: what its thread does with them, and what it asks and says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.admin import dead
from pipeline.admin.dead import Where
from pipeline.admin.stops import stops_on, target_of
from pipeline.cli.top import Hands, Watcher
from pipeline.cli.top.screens import Order, Question
from pipeline.clock import polls
from pipeline.errors import ShardUnavailable
from pipeline.testing import Drained, Sandbox, sandbox


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("sale", Field("customer", "integer"), Field("code", unique=True), Field("qty", "integer"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"sale": {"shard_key": "customer"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


@pytest.fixture
def refused(box: Sandbox, db: Any) -> None:
    """An op that was refused, and one that waits behind it."""
    pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    receipt = pipeline.enqueue_insert(db.sale, customer=7, code="A1", qty=3)
    pipeline.enqueue_update(db.sale.id == receipt.id, qty=db.sale.qty + 1)
    assert box.drain() == Drained(1, 1)


def settled(hands: Hands) -> Question | str:
    """Return what an order ends with."""
    for _ in polls(20):
        for one in hands.news():
            if isinstance(one, Question) or not one.endswith("…"):
                return one
    pytest.fail("the order did not end")


def do(box: Sandbox, order: Order) -> Question | str:
    hands = Hands(box.client)
    hands.order(order)
    return settled(hands)


@pytest.mark.parametrize("table", [None, "sale"])
def test_a_shard_and_a_table_are_paused_and_go_on(box: Sandbox, db: Any, table: str | None):
    what = "table sale" if table else "shard s0"

    assert do(box, Order("pause", "s0", table)) == f"{what} is paused; r lets it go on"
    pipeline.enqueue_insert(db.sale, customer=7, code="A1")
    target = target_of(box.client, table or "s0")
    assert [stop.kind for stop in stops_on(box.client, "s0", target)] == ["paused"]
    if table:
        box.drain()
        assert box.rows("sale") == []
    ops = "1" if table else "0"
    assert do(box, Order("resume", "s0", table)) == f"{what} goes on; {ops} ops that were set aside are settled"
    assert do(box, Order("resume", "s0", table)) == f"{what} was not stopped; 0 ops that were set aside are settled"
    for _ in polls(10):
        box.drain()
        if box.rows("sale"):
            break

    assert [row["code"] for row in box.rows("sale")] == ["A1"]


@pytest.mark.usefixtures("refused")
def test_a_replay_asks_with_the_number_and_does_just_that(box: Sandbox, db: Any):
    asked = do(box, Order("count", "s0", "sale"))
    assert isinstance(asked, Question)
    assert asked.text == "replay 1 op of sale on s0, and 1 that wait behind? in order; refused ones stay set aside"
    assert do(box, asked.order) == "0 replayed, 1 refused again, 1 still wait"

    pipeline.enqueue_delete(db.sale.customer == 7, shard_key=7)
    box.drain()
    again = do(box, Order("count", "s0"))
    assert isinstance(again, Question)
    assert do(box, again.order) == "2 replayed, 0 refused again, 0 still wait"
    assert [row["qty"] for row in box.rows("sale")] == [4]
    assert do(box, Order("count", "s0")) == "nothing of s0 is set aside that could be replayed"


@pytest.mark.usefixtures("refused")
def test_what_is_set_aside_is_counted_by_table_state_and_error_without_values(box: Sandbox):
    found = list(dead.tally(box.client, Where(shard="s0")))

    assert sorted((one.shard, one.table, one.state, one.ops) for one in found) == [
        ("s0", "sale", "parked", 1), ("s0", "sale", "rejected", 1),
    ]  # fmt: skip


def test_a_server_that_is_away_is_told_and_the_next_order_is_taken(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    def away(*_: Any, **__: Any) -> None:
        raise ShardUnavailable("s0", "it is away")

    hands = Hands(box.client)
    with monkeypatch.context() as gone:
        gone.setattr("pipeline.admin.stops.pause", away)
        hands.order(Order("pause", "s0"))
        assert settled(hands) == "not done: node 's0': it is away"

    hands.order(Order("pause", "s0"))
    assert settled(hands) == "shard s0 is paused; r lets it go on"


def test_the_watcher_answers_at_once_while_its_servers_hang(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def hangs(self: Any) -> Any:
        asked.append("look")
        for _ in polls(60):
            if "end" in asked:
                break
        raise ShardUnavailable("s0", "it hung")

    monkeypatch.setattr("pipeline.cli.top.Observer.newest", hangs)
    watcher = Watcher(box.client, 60)
    try:
        assert any(asked for _ in polls(10))
        assert watcher.found().record is None
    finally:
        watcher.close()
        asked.append("end")
