"""Two calls with one idempotency key while Redis is away, goes or comes back: the cases of notes/11-one-id.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.sandbox.one_key import Caller
from support.sandbox.spooling import Shop

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.spool_fallback import AWAY_S
from pipeline.errors import WaitTimeout
from pipeline.model.receipt import Receipt


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    made.buy(0)  # everything is known: definitions, epochs, ids
    made.bought()
    yield made
    made.client.close()
    made.box.client.close()
    made.db.close()


Make = Callable[..., Caller]


@pytest.fixture
def caller(shop: Shop) -> Iterator[Make]:
    made: list[Client] = []

    def make(held: bool, client: Client | None = None) -> Caller:
        if client is None:  # a process of the same host
            made.append(client := shop.another())
            shop.buy(0, client)
        return Caller(client, partial(shop.buy, client=client), held=held)

    yield make
    for client in made:
        client.close()


def of_the_key(shop: Shop) -> list[tuple[int, int]]:
    """Bring everything to the shards; return id and quantity of the rows that were bought with the key."""
    shop.log.away = False
    assert shop.drain().empty
    shop.box.drain()
    return [(row["id"], row["qty"]) for row in shop.box.rows("purchase") if row["qty"]]


def one_row(shop: Shop, *receipts: Receipt) -> tuple[int, int]:
    """Bring everything to the shards; there is one row, all receipts say so, and one at least names it."""
    [row] = of_the_key(shop)
    assert row[0] in [receipt.id for receipt in receipts]
    for receipt in receipts:
        try:
            assert receipt.status() == receipt.wait(5) == "applied"
        except WaitTimeout:
            pytest.fail(f"{receipt.status()}: {evidence(shop, receipts)}")
    return row


def evidence(shop: Shop, receipts: Iterable[Receipt]) -> str:
    spool, shards = shop.client.spool, shop.box.client.topology.shards
    kept = spool.counts() if spool is not None else None
    marks = [shop.box.client.nodes.primary(shard).query("SELECT * FROM pipeline_producers") for shard in shards]
    ops = [(receipt.id, receipt.producer, receipt.producer_seq) for receipt in receipts]
    return f"{ops}; spool {kept}; log {shop.entries()}; {marks}; rows {shop.box.rows('purchase')}"


MODES = pytest.mark.parametrize("held", [(a, b) for a in (True, False) for b in (True, False)])


@MODES
@pytest.mark.parametrize("hosts", [1, 2])
def test_callers_that_cannot_ask_redis_may_be_told_two_ids_but_make_one_row(
    shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool], hosts: int
):
    other_host = elsewhere(shop, tmp_path) if hosts == 2 else None
    if other_host is not None:
        shop.buy(0, other_host)
    first, second = caller(held[0]), caller(held[1], other_host)
    shop.log.away = True

    one, other = first.buys(1), second.buys(2)
    told = one.id, other.id
    second.ends()
    first.ends()
    shop.log.away = False
    drained(other_host)

    one_row(shop, one, other)
    assert told == (one.id, other.id)  # an id that was told does not change
    assert one.id != other.id


@MODES
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("drained_before", [True, False])
def test_an_op_that_was_spooled_has_no_claim_in_redis_and_makes_one_row_with_a_later_one(
    shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool], hosts: int, drained_before: bool
):
    other_host = elsewhere(shop, tmp_path) if hosts == 2 else None
    first, second = caller(held[0]), caller(held[1], other_host)
    shop.log.away = True
    one = first.buys(1)
    first.ends()
    shop.log.away = False
    if drained_before:
        assert shop.drain().empty

    other = second.buys(2)
    second.ends()
    drained(other_host)

    row = one_row(shop, one, other)
    assert row == (one.id, 1) or not drained_before


@MODES
def test_callers_agree_again_once_redis_is_back(shop: Shop, caller: Make, held: tuple[bool, bool]):
    before, first, second = caller(True), *map(caller, held)
    shop.log.away = True
    failed = before.buys(3)  # and its request fails
    shop.log.away = False
    shop.client.away.close()  # however long the machine took since the failure

    one, other = first.buys(1), second.buys(2)
    first.ends()
    second.ends()

    assert failed.id != one.id == other.id
    assert one_row(shop, one, other)[0] == one.id


@MODES
@pytest.mark.parametrize("processes", [1, 2])
def test_redis_goes_between_the_two_calls(shop: Shop, caller: Make, held: tuple[bool, bool], processes: int):
    clients = [shop.another(), shop.another()][:processes]
    first, second = caller(held[0], clients[0]), caller(held[1], clients[-1])
    for client in clients:
        shop.buy(0, client)
    one = first.buys(1)
    shop.log.away = True

    other = second.buys(2)
    second.ends()
    first.ends()

    one_row(shop, one, other)
    for client in clients:
        client.close()


@pytest.mark.parametrize("held", [True, False])
def test_redis_goes_before_the_first_request_ends(shop: Shop, caller: Make, held: bool):
    first, second = caller(True), caller(held)
    one = first.buys(1)
    shop.log.away = True
    first.ends()

    other = second.buys(2)
    second.ends()

    assert one_row(shop, one, other) == (one.id, 1)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("lost", ["send", "reply"])
def test_the_key_of_an_op_in_doubt_is_found_where_redis_has_it(shop: Shop, caller: Make, held: bool, lost: str):
    first, second = caller(False), caller(held)

    def broken(where: str) -> None:
        if where == lost:
            raise ConnectionError("on purpose")

    shop.log.fault = broken
    one = first.buys(1)
    shop.log.fault = lambda where: None
    other = second.buys(2)
    second.ends()

    assert one_row(shop, one, other) == (one.id, 1)
    assert lost == "send" or other.id == one.id


@MODES
@pytest.mark.parametrize("refuse", ["full flag", "maxmemory"])
def test_a_redis_that_is_full_is_like_one_that_is_away(shop: Shop, caller: Make, held: tuple[bool, bool], refuse: str):
    first, second = map(caller, held)
    if refuse == "full flag":
        shop.log.set_full("on purpose", for_ms=60_000)
    else:
        shop.log.limit_bytes = 1

    one, other = first.buys(1), second.buys(2)
    first.ends()
    second.ends()

    shop.log.set_full(None)
    shop.log.limit_bytes = 0
    one_row(shop, one, other)


@MODES
def test_a_redis_that_is_full_tells_the_key_of_what_it_took_before(shop: Shop, caller: Make, held: tuple[bool, bool]):
    first, second = map(caller, held)
    one = first.buys(1)
    shop.log.set_full("on purpose", for_ms=60_000)

    other = second.buys(2)
    first.ends()
    second.ends()

    shop.log.set_full(None)
    assert one_row(shop, one, other)[0] == one.id == other.id


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("away", [True, False])
def test_an_op_that_is_spooled_first_by_wish_has_the_keys_id_where_redis_tells_it(
    shop: Shop, caller: Make, held: bool, away: bool
):
    waiting, wishing, last = caller(True), caller(False), caller(held)
    shop.log.away = away
    told = waiting.buys(1)

    one = wishing.buys(2, durability="spooled")
    other = last.buys(3)
    last.ends()
    waiting.ends()

    assert one_row(shop, told, one, other) == (one.id, 2)
    assert away or told.id == one.id == other.id


@MODES
def test_redis_is_asked_though_ops_of_others_wait_in_the_spool_by_wish(
    shop: Shop, caller: Make, held: tuple[bool, bool]
):
    first, second = map(caller, held)
    one = first.buys(1)
    shop.buy(0, durability="spooled")

    other = second.buys(2)
    second.ends()
    first.ends()

    [(row, _)] = of_the_key(shop)
    assert row == one.id == other.id


def test_a_redis_that_does_not_answer_is_asked_for_a_key_only_now_and_then(
    shop: Shop, caller: Make, monkeypatch: pytest.MonkeyPatch
):
    process = shop.another()
    shop.buy(0, process)
    shop.log.away = True
    caller(True, process).buys(1)
    shop.buy(2)  # it waits in the spool
    asked, now_s = shop.log.asked, clock.mono_s()

    for n in range(5):
        monkeypatch.setattr("pipeline.clock.mono_s", lambda later=now_s + 1.1 * n: later)  # the breaker has closed
        caller(True, process).buys(1)
    assert shop.log.asked == asked
    monkeypatch.setattr("pipeline.clock.mono_s", lambda: now_s + AWAY_S + 0.1)
    caller(True, process).buys(1)

    assert shop.log.asked == asked + 1
    process.close()


@pytest.mark.parametrize("held", [True, False])
def test_what_was_spooled_by_wish_makes_the_row_though_redis_goes_then(shop: Shop, caller: Make, held: bool):
    wishing, second = caller(False), caller(held)
    one = wishing.buys(1, durability="spooled")
    shop.log.away = True

    other = second.buys(2)
    second.ends()

    assert one_row(shop, one, other) == (one.id, 1)


def test_a_call_that_meets_a_redis_that_is_gone_asks_it_for_the_key_once_at_most(
    shop: Shop, caller: Make, monkeypatch: pytest.MonkeyPatch
):
    asked, claim_key = list[str](), shop.log.claim_key

    def counted(bucket: int, key: str, row_id: int) -> int:
        asked.append(key)
        return int(claim_key(bucket, key, row_id))

    monkeypatch.setattr(shop.log, "claim_key", counted)
    now, held = caller(False), caller(True)
    shop.log.away = True

    now.buys(1)
    assert asked == []
    assert shop.drain().sent == 0  # it closes the breaker
    shop.log.away = False
    assert shop.drain().empty
    shop.log.away = True
    asked.clear()
    held.buys(2)
    held.buys(3)
    held.ends()

    assert len(asked) == 1


@pytest.mark.parametrize("held", [True, False])
def test_a_request_that_failed_while_redis_was_away_leaves_the_row_to_the_next(shop: Shop, caller: Make, held: bool):
    failing, again = caller(True), caller(held)
    shop.log.away = True
    failing.buys(1)  # and its request fails

    receipt = again.buys(2)
    again.ends()

    assert one_row(shop, receipt) == (receipt.id, 2)


def test_threads_and_processes_that_meet_in_the_spool_at_the_same_moment_make_one_row(shop: Shop, caller: Make):
    requests = [caller(n % 2 == 0) for n in range(6)]
    shop.log.away = True
    barrier, receipts = threading.Barrier(6), list[Receipt]()

    def call(request: Caller) -> None:
        barrier.wait(30)
        receipts.append(request.buys(1))
        request.ends()

    threads = [threading.Thread(target=call, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(receipts) == 6
    one_row(shop, *receipts)


# hosts ------------------------------------------------------------------------------------------------------------


@MODES
def test_hosts_agree_through_redis(shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool]):
    other_host = elsewhere(shop, tmp_path)
    shop.buy(0, other_host)
    first, second, third = caller(held[0]), caller(held[1], other_host), caller(held[0], other_host)
    one, other = first.buys(1), second.buys(2)
    shop.log.away = True
    last = third.buys(3)
    shop.log.away = False
    for request in (third, second, first):
        request.ends()
    drained(other_host)

    assert one.id == other.id
    one_row(shop, one, other, last)


def elsewhere(shop: Shop, folder: Path) -> Client:
    """Return a client of another host."""
    before, shop.folder = shop.folder, folder / "elsewhere"
    shop.folder.mkdir()
    client = shop.another()
    shop.folder = before
    return client


def drained(host: Client | None) -> None:
    """Drain the spool of another host, if there is one, and close it."""
    if host is not None:
        host.away.close()
        assert host.drainer.drain().empty  # type: ignore[union-attr]  # it has a spool
        host.close()
