"""Enqueueing with a spool: whatever Redis does, a call returns, and each op is in its log once and in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field
from support.sandbox.spooling import Shop

from pipeline import bounds, clock
from pipeline.enqueue import held_ops
from pipeline.errors import (
    BadOp,
    InDoubt,
    LogUnavailable,
    NotDurable,
    PartialResult,
    ShardUnavailable,
    WaitTimeout,
)
from pipeline.shard import NodeSession
from pipeline.shard.columns import DatabaseColumn
from pipeline.shard.records import ledger_queries


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    yield made
    made.client.close()
    made.box.client.close()
    made.db.close()


# Redis is away ----------------------------------------------------------------------------------------------------


def test_while_all_is_well_nothing_touches_the_spool(shop: Shop):
    receipt = shop.buy(1)

    assert receipt.position is not None
    assert not shop.client.spool.waiting()
    assert shop.client.spool.counts().waiting == 0


def test_a_call_succeeds_while_redis_is_away_and_its_op_is_applied_once_it_is_back(shop: Shop):
    shop.buy(1)
    shop.log.away = True

    receipt = shop.buy(2)
    assert receipt.status() == "spooled"
    assert receipt.id
    shop.log.away = False
    assert shop.drain().sent == 1

    assert receipt.status() == "queued"
    assert shop.bought() == [1, 2]
    assert receipt.status() == "applied"
    assert receipt.wait(1) == "applied"


def test_once_one_op_waits_nobody_asks_redis_any_more(shop: Shop):
    shop.buy(1)
    other = shop.another()
    shop.buy(0, other)
    shop.log.away = True
    shop.buy(2)
    asked = shop.log.asked

    shop.buy(3)
    shop.buy(4, other)

    assert shop.log.asked == asked


def test_an_op_goes_behind_those_that_wait_though_redis_is_back(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    shop.buy(2)
    shop.log.away = False

    assert shop.buy(3).position is None
    shop.client.enqueue_update(shop.db.purchase.customer == 7, qty=shop.db.purchase.qty * 10)
    shop.drain()

    assert shop.buy(4).position is not None
    assert shop.bought() == [10, 20, 30, 4]


@pytest.fixture
def large(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose every op is a large one, with ops in its spool though Redis is back."""
    shop.buy(1)
    shop.log.away = True
    shop.buy(2)
    shop.log.away = False
    monkeypatch.setattr(bounds, "LARGE_BYTES", 1)
    monkeypatch.setattr(bounds, "LEAST_BYTES_PER_S", 10.0)  # 20 s for each
    return shop


def test_a_large_op_lets_the_spool_drain_first(large: Shop, monkeypatch: pytest.MonkeyPatch):
    """Else it would be in there before small ones that come a moment later."""
    monkeypatch.setattr(clock, "sleep_s", lambda seconds: large.drain())

    receipt = large.buy(3)

    assert receipt.position is not None
    assert large.bought() == [1, 2, 3]


def test_a_large_op_goes_behind_what_waits_once_its_time_is_over(large: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "LEAST_BYTES_PER_S", 10**6)

    assert large.buy(3).position is None
    large.drain()
    assert large.bought() == [1, 2, 3]


def test_a_large_op_does_not_wait_for_a_spool_from_which_redis_takes_nothing(
    large: Shop, monkeypatch: pytest.MonkeyPatch
):
    slept = list[float]()
    monkeypatch.setattr(clock, "sleep_s", slept.append)
    os.utime(f"{large.client.spool.path}.waiting", (0, 0))  # it has been away for long

    assert large.buy(3).position is None
    assert slept == []


@pytest.mark.parametrize("lost", ["send", "reply"])
def test_an_op_whose_outcome_is_unknown_is_neither_doubled_nor_lost(shop: Shop, lost: str):
    shop.buy(1)

    def broken(where: str) -> None:
        if where == lost:
            raise ConnectionError("on purpose")

    shop.log.fault = broken
    receipt = shop.buy(2)
    shop.log.fault = lambda where: None
    assert shop.logged() == (2 if lost == "reply" else 1)
    shop.drain()

    assert receipt.producer_seq == 2
    assert shop.logged() == 2
    assert shop.bought() == [1, 2]
    assert receipt.status() == "applied"


def test_a_request_that_meets_a_new_lineage_does_not_wait_for_a_primary_that_hangs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    hanging, go_on, give = threading.Event(), threading.Event(), ledger_queries.give_epoch

    def slow(*arguments: Any) -> int:
        hanging.set()
        assert go_on.wait(30)
        return give(*arguments)

    shop.buy(1)
    monkeypatch.setattr(ledger_queries, "give_epoch", slow)
    shop.log.restart()

    first, second = shop.buy(2), shop.buy(3)  # it hangs until both are back
    assert hanging.is_set()
    assert (first.status(), second.status()) == ("spooled", "spooled")
    go_on.set()
    shop.drain()

    assert shop.buy(4).position is not None
    assert shop.bought() == [1, 2, 3, 4]


def test_of_a_bulk_call_only_what_redis_did_not_take_is_spooled(shop: Shop):
    shop.buy(0)
    shop.client.enqueue_insert(shop.db.purchase, customer=8)
    appends = 0

    def broken(where: str) -> None:
        nonlocal appends
        appends += where == "send"
        if appends > 1:
            raise ConnectionError("on purpose")

    shop.log.fault = broken
    rows = [{"customer": n, "qty": n} for n in range(50)]
    receipts = shop.client.enqueue_bulk_insert(shop.db.purchase, rows)
    shop.log.fault = lambda where: None
    states = {receipt.status() for receipt in receipts}
    assert states == {"queued", "spooled"}
    shop.drain()

    shop.box.drain()
    assert {receipt.status() for receipt in receipts} == {"applied"}
    assert len(shop.box.rows("purchase")) == 52
    shop.client.wait_all(receipts, 1)


@pytest.mark.parametrize("refuse", ["full flag", "maxmemory"])
def test_a_full_redis_spools_and_a_bad_op_is_still_refused_at_the_door(shop: Shop, refuse: str):
    shop.buy(1)
    if refuse == "full flag":
        shop.log.set_full("on purpose", for_ms=60_000)
    else:
        shop.log.limit_bytes = 1

    assert shop.buy(2).status() == "spooled"
    with pytest.raises(BadOp):
        shop.client.enqueue_insert(shop.db.purchase, customer=7, qty="many")
    assert not shop.drain().empty

    shop.log.set_full(None)
    shop.log.limit_bytes = 0
    assert shop.drain().empty
    assert shop.bought() == [1, 2]


def test_groups_and_held_ops_are_spooled_too(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    held = shop.client.held()
    with shop.client.holding(held):
        shop.buy(2)
        shop.buy(3)
    with shop.client.atomic():
        inside = [shop.buy(4), shop.buy(5)]

    receipts = held.send()

    assert {receipt.status() for receipt in receipts + inside} == {"spooled"}
    shop.log.away = False
    shop.drain()
    assert sorted(shop.bought()) == [1, 2, 3, 4, 5]


def test_a_full_spool_is_told_and_names_its_file(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_ops, "SHEET_ROWS", held_ops.CHUNK_ROWS)
    shop.buy(1)
    shop.log.away = True
    rows = [{"customer": n % 100, "qty": n} for n in range(20_000)]

    with pytest.raises(InDoubt, match=r"app\.spool is at \[spool\] max_mb = 1") as raised:
        shop.client.enqueue_bulk_insert(shop.db.purchase, rows)

    queued = [receipt for receipt in raised.value.receipts if receipt is not None]
    assert len(queued) == shop.client.spool.counts().waiting > 1000


def test_a_spool_that_cannot_be_written_leaves_the_error_that_redis_gave(shop: Shop):
    shop.buy(1)
    broken = shop.another()
    broken.spool.file.path = Path("/dev/null/nowhere")
    shop.buy(0, broken)
    shop.log.away = True

    with pytest.raises(InDoubt, match="spool") as raised:
        shop.buy(2, broken)

    assert raised.value.__cause__ is not None
    assert isinstance(raised.value.__cause__.__cause__, LogUnavailable)


def test_without_a_spool_the_errors_are_as_they_were(shop: Shop):
    shop.box.client.enqueue_insert(shop.db.purchase, customer=7)
    shop.log.away = True

    with pytest.raises(LogUnavailable):
        shop.box.client.enqueue_insert(shop.db.purchase, customer=7)
    with pytest.raises(BadOp, match=r"\[spool\] enabled"):
        shop.box.client.enqueue_insert(shop.db.purchase, {"customer": 7}, durability="spooled")


def test_who_learns_of_a_new_lineage_from_others_publishes_his_definitions_anew(shop: Shop):
    other = shop.another()
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("refund", Field("customer", "integer"))
    other.enqueue_insert(db.refund, customer=7)
    shop.buy(1)
    shop.log.fail_over()  # to a server that knows nothing
    epochs = shop.client.publisher._epochs
    for scope in shop.client.publisher.scopes.values():
        epochs.after(scope, epochs.known.get(scope.name, 0))
    assert "refund" not in shop.log.newest_schemas()

    other.enqueue_insert(db.refund, customer=7)

    assert "refund" in shop.log.newest_schemas()


# the first op of a table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hangs", "refuses"])
def test_a_primary_that_does_not_answer_keeps_no_op_from_being_taken(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
):
    go_on = threading.Event()

    def ask(*arguments: Any) -> Any:
        assert how == "refuses" or go_on.wait(30)
        raise ShardUnavailable("s0", "on purpose")

    monkeypatch.setattr("pipeline.shard.columns.columns_of", ask)

    receipt = shop.buy(1, shop.another())
    go_on.set()

    assert receipt.position is not None
    assert "the workers will" in caplog.text


def test_a_refusal_is_the_answer_of_one_primary_and_not_of_one_that_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    def ask(session: NodeSession, *rest: Any) -> list[DatabaseColumn]:
        if session.node == "s0":
            raise ShardUnavailable("s0", "on purpose")
        return [DatabaseColumn("id", "int(11)", False, None, None)]

    monkeypatch.setattr("pipeline.shard.columns.columns_of", ask)

    with pytest.raises(BadOp, match="cannot hold a 53-bit id"):
        shop.buy(1, shop.another())


# processes that start while Redis is away ----------------------------------------------------------------------------


def test_a_process_that_starts_while_redis_is_away_has_ids_of_the_hosts_reserve(shop: Shop):
    shop.buy(1)
    shop.log.away = True

    receipt = shop.buy(2, shop.another())

    assert receipt.id
    shop.log.away = False
    shop.drain()
    assert shop.bought() == [1, 2]


def test_there_is_no_limit_to_the_processes_that_make_ids(shop: Shop):
    receipts = [shop.buy(n, shop.another()) for n in range(130)]

    assert len({receipt.id for receipt in receipts}) == 130


def test_a_process_that_starts_while_redis_is_away_reads_and_prints_session_tokens(shop: Shop):
    session = shop.client.session_token()
    session.wrote([shop.buy(1)])
    text = str(session)
    shop.log.away = True

    new = shop.another().session_token(text)
    new.wrote([])

    assert new.token == session.token
    assert str(new) == text


def test_tokens_stay_valid_when_redis_comes_back_empty(shop: Shop):
    session = shop.client.session_token()
    session.wrote([shop.buy(1)])
    text = str(session)
    shop.log.fail_over()

    assert shop.another().session_token(text).token == session.token
    assert shop.log.secret("proposed in vain") != "proposed in vain"


def test_a_host_that_has_never_reached_redis_cannot_tell_the_secret(shop: Shop):
    shop.log.away = True

    with pytest.raises(LogUnavailable):
        str(shop.client.session_token())


def test_a_process_that_starts_while_redis_is_away_has_ids_and_definitions(shop: Shop):
    first = shop.buy(1)
    shop.log.away = True

    second = shop.buy(2, shop.another())
    third = shop.buy(3, shop.another())
    shop.log.fail_over()  # Redis comes back empty
    shop.log.away = False
    shop.drain()

    assert len({first.id, second.id, third.id}) == 3
    assert {second.status(), third.status()} == {"queued"}
    assert sorted(shop.bought())[-2:] == [2, 3]


def test_definitions_that_redis_has_never_had_are_not_overtaken_by_ops(shop: Shop):
    shop.log.away = True
    fresh = shop.another()
    shop.log.fail_over()
    shop.log.away = False
    fresh.away.close()

    receipt = shop.buy(1, fresh)

    assert receipt.status() == "spooled"
    shop.drain()
    assert shop.bought() == [1]


def test_a_barrier_waits_for_the_spool_too(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    shop.buy(2)

    with pytest.raises(WaitTimeout, match="spool"):
        shop.client.barrier("purchase", 0.05)

    shop.log.away = False
    shop.drain()
    shop.box.drain()
    shop.client.barrier("purchase", 5)


def test_what_was_drained_and_lost_is_named_though_the_spool_sends_nothing_more(shop: Shop):
    shop.buy(1)
    assert shop.bought() == [1]
    shop.log.away = True
    receipt = shop.buy(2)
    shop.log.away = False
    shop.drain()
    shop.log.fail_over()

    shop.client.publisher.settle()

    assert receipt.status() == "lost"
    assert shop.bought() == [1]


def test_what_the_spool_keeps_is_never_told_lost(shop: Shop):
    """Its op goes on to be sent, under its number, until every node has it."""
    receipt = shop.buy(1, durability="spooled")
    shop.drain()
    shop.log.fail_over()

    shop.client.publisher.settle()
    shop.drain()

    assert shop.bought() == [1]
    assert receipt.status() == "applied"


def test_what_the_spool_keeps_is_sent_again_where_one_log_is_gone_and_its_producer_is_not(shop: Shop):
    receipt = shop.buy(1, durability="spooled")
    shop.drain()
    shop.log.forget(receipt.bucket)
    shop.log.restart()

    shop.drain()

    assert shop.bought() == [1]


# durability="spooled" -----------------------------------------------------------------------------------------------


def test_what_was_spooled_outlives_redis_and_is_forgotten_only_once_it_is_applied(shop: Shop):
    receipts = [shop.buy(n, durability="spooled") for n in range(3)]
    shop.drain()
    shop.log.fail_over()

    assert [receipt.status() for receipt in receipts] == ["queued"] * 3
    assert shop.client.drainer.forget() == 0
    receipts.append(shop.buy(3, durability="spooled"))
    shop.drain()

    assert shop.bought() == [0, 1, 2, 3]
    assert [receipt.status() for receipt in receipts] == ["applied"] * 4
    assert shop.client.drainer.forget() == 4
    assert shop.client.spool.counts().kept == 0


def test_what_was_applied_before_redis_was_lost_is_not_applied_twice(shop: Shop):
    shop.buy(1, durability="spooled")
    shop.drain()
    assert shop.bought() == [1]
    shop.log.fail_over()

    shop.drain()
    shop.buy(2, durability="spooled")
    shop.drain()

    assert shop.bought() == [1, 2]


def test_a_change_of_lineage_in_the_midst_of_a_drain_sends_everything_again_first(shop: Shop):
    shop.buy(1, durability="spooled")
    shop.drain()
    shop.buy(2, durability="spooled")
    failing = [True]

    def fails_over(step: str) -> None:
        if step == "send" and failing:
            failing.clear()
            shop.log.fail_over()

    shop.client.drainer._step = fails_over
    shop.drain()

    assert shop.bought() == [1, 2]
    assert shop.client.drainer.forget() == 2


def test_an_op_that_must_be_on_a_second_machine_is_not_said_to_be(shop: Shop):
    shop.buy(1)
    shop.log.away = True

    with pytest.raises(NotDurable) as raised:
        shop.buy(2, durability="replica")

    assert raised.value.receipt.status() == "spooled"
    shop.log.away = False
    shop.drain()
    assert shop.bought() == [1, 2]


def test_what_a_replica_has_not_is_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    nodes, topology = shop.client.nodes, shop.client.topology
    receipt = shop.buy(1, durability="spooled")
    shop.drain()
    shop.box.drain()
    [behind] = [shard for shard in topology.shards if shard != topology.shard_of(receipt.bucket)]
    monkeypatch.setattr(nodes, "replicas", lambda shard: [nodes.primary(behind)])

    assert shop.client.drainer.forget() == 0

    monkeypatch.setattr(nodes, "unfit", lambda node: node == behind)
    assert shop.client.drainer.forget() == 1


def test_nothing_is_forgotten_while_a_node_is_away(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    nodes = shop.client.nodes
    shop.buy(1, durability="spooled")
    shop.drain()
    shop.box.drain()
    gone = NodeSession("s0-r0", f"sqlite://{shop.folder}/not/there.sqlite", read_only=True)
    monkeypatch.setattr(nodes, "replicas", lambda shard: [gone])

    assert shop.client.drainer.forget() == 0


# receipts and reads -------------------------------------------------------------------------------------------------


def test_a_spooled_receipt_survives_a_cookie(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    receipt = shop.buy(2)

    again = shop.client.parse(str(receipt))

    assert again == receipt
    assert again.id == receipt.id
    assert again.status() == "spooled"
    with pytest.raises(WaitTimeout, match=r"spooled after .*: it waits because Redis did not take them"):
        again.wait(0.05)


def test_a_read_that_asks_for_a_spooled_op_sees_it_once_it_is_applied(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    receipt = shop.buy(2)
    shop.log.away = False
    shop.drain()
    shop.box.drain()

    assert shop.client.get(shop.db.purchase, receipt.id, after=receipt).qty == 2


def test_a_users_session_waits_for_what_he_has_spooled(shop: Shop):
    shop.buy(1)
    shop.log.away = True
    session = shop.client.session_token()
    session.wrote([shop.buy(2)])
    shop.log.away = False
    text = str(session)

    with pytest.raises(PartialResult, match="still queued"):
        shop.client.count(shop.db.purchase.qty == 2, after=shop.client.session_token(text), on_stale="error")

    shop.drain()
    shop.box.drain()
    assert shop.client.count(shop.db.purchase.qty == 2, after=shop.client.session_token(text)) == 1


# drainers -----------------------------------------------------------------------------------------------------------


def test_two_that_drain_at_once_double_nothing(shop: Shop):
    shop.buy(0)
    shop.log.away = True
    for n in range(1, 60):
        shop.buy(n)
    shop.log.away = False
    others = [shop.another() for _ in range(4)]

    threads = [threading.Thread(target=other.drainer.drain) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert shop.drain().empty
    assert shop.bought() == list(range(60))
    assert shop.logged() == 60


def test_a_drainer_that_lost_its_lock_doubles_nothing_either(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shop.buy(0)
    shop.log.away = True
    for n in range(1, 60):
        shop.buy(n)
    shop.log.away = False
    other = shop.another()
    other.spool.lock()._path = Path(f"{shop.folder}/another.lock")

    def again(step: str) -> None:
        if step == "sent":
            other.drainer.drain()

    shop.client.drainer._step = again
    shop.drain()

    assert shop.bought() == list(range(60))
    assert shop.logged() == 60


@pytest.mark.parametrize("step", ["definitions", "send", "sent", "settle"])
def test_a_drainer_that_dies_at_any_step_leaves_all_in_order(shop: Shop, step: str):
    shop.buy(0)
    shop.log.away = True
    for n in range(1, 5):
        shop.buy(n, durability="spooled")
    shop.log.away = False

    def die(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    other = shop.another()
    other.drainer._step = die
    with pytest.raises(KeyboardInterrupt):
        other.drainer.drain()
    shop.drain()

    assert shop.bought() == list(range(5))
    assert shop.logged() == 5


def test_the_courier_drains_by_itself_once_redis_is_back(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shop.buy(1)
    monkeypatch.undo()
    shop.log.away = True
    receipt = shop.buy(2)
    assert receipt.status() == "spooled"

    shop.log.away = False

    assert any(receipt.status() == "queued" for _ in clock.polls(20))
    assert any(not shop.client.spool.waiting() for _ in clock.polls(20))
    assert shop.bought() == [1, 2]
