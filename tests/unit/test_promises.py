"""Two calls with one idempotency key while Redis is away, goes or comes back: the cases of notes/11-same-key.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_spooling import Shop

from pipeline import clock
from pipeline.client import Client
from pipeline.enqueue.idempotency import AWAY_S
from pipeline.errors import SpoolUnavailable
from pipeline.model.receipt import Receipt
from pipeline.spool.key_promises import KEPT_MS, ROOM_BYTES, Promise
from pipeline.spool.store import Spool

#: SQLite's numbers of `PRAGMA synchronous`.
NORMAL, FULL = 1, 2


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    made.buy(0)  # everything is known: definitions, epochs, ids
    made.bought()
    yield made
    made.client.close()
    made.box.client.close()
    made.db.close()


class Caller:
    """A request of one process, with the one key; in mode on_commit it is sent only when it ends."""

    def __init__(self, shop: Shop, client: Client, held: bool):
        self._shop, self._client = shop, client
        self._ops = client.held() if held else None

    def buys(self, qty: int, **options: Any) -> Receipt:
        def call() -> Receipt:
            return self._shop.buy(qty, self._client, idempotency_key="form 1", **options)

        if self._ops is None:
            return call()
        with self._client.holding(self._ops):
            return call()

    def ends(self) -> None:
        if self._ops is not None:
            self._ops.send()


Make = Callable[..., Caller]


@pytest.fixture
def caller(shop: Shop) -> Iterator[Make]:
    made: list[Client] = []

    def make(held: bool, client: Client | None = None) -> Caller:
        if client is None:  # a process of the same host
            made.append(client := shop.another())
            shop.buy(0, client)
        return Caller(shop, client, held)

    yield make
    for client in made:
        client.close()


def of_the_key(shop: Shop) -> list[tuple[int, int]]:
    """Bring everything to the shards; return id and quantity of the rows that were bought with the key."""
    shop.log.away = False
    assert shop.drain().empty
    shop.box.drain()
    return [(row["id"], row["qty"]) for row in shop.box.rows("purchase") if row["qty"]]


def known(shop: Shop, row: Receipt) -> int | None:
    """Return what Redis knows of the key, without a word of it."""
    found = shop.log._get(f"same:{row.bucket}:form 1")
    return int(found.split()[-1]) if found else None


MODES = pytest.mark.parametrize("held", [(a, b) for a in (True, False) for b in (True, False)])


@MODES
def test_processes_of_one_host_tell_one_id_while_redis_is_away(shop: Shop, caller: Make, held: tuple[bool, bool]):
    first, second = map(caller, held)
    shop.log.away = True

    one, other = first.buys(1), second.buys(2)
    told = one.id, other.id
    second.ends()
    first.ends()

    [(row, _)] = of_the_key(shop)
    assert (row, row) == told == (one.id, other.id)
    assert {one.status(), other.status()} == {"applied"}


@MODES
def test_the_second_call_sees_redis_again_and_finds_what_its_host_has_promised(
    shop: Shop, caller: Make, held: tuple[bool, bool]
):
    first, second = map(caller, held)
    shop.log.away = True
    one = first.buys(1)
    shop.log.away = False

    other = second.buys(2)

    assert other.id == one.id
    if held[0]:  # nothing of the first waits yet, so the second has asked Redis
        assert known(shop, one) == one.id
    first.ends()
    second.ends()
    [(row, _)] = of_the_key(shop)
    assert row == one.id == other.id


@MODES
def test_a_host_that_has_drained_its_spool_has_told_its_promises_to_the_others(
    shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool]
):
    first = caller(held[0])
    shop.log.away = True
    one = first.buys(1)
    first.ends()
    shop.log.away = False
    assert shop.drain().empty

    other_host = elsewhere(shop, tmp_path)
    second = caller(held[1], other_host)
    other = second.buys(2)
    second.ends()

    assert of_the_key(shop) == [(one.id, 1)]
    assert other.id == one.id
    other_host.close()


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

    [(row, _)] = of_the_key(shop)
    assert row == one.id == other.id
    for client in clients:
        client.close()


@pytest.mark.parametrize("held", [True, False])
def test_redis_goes_before_the_first_request_ends_and_the_next_process_finds_it_in_the_spool(
    shop: Shop, caller: Make, held: bool
):
    first, second = caller(True), caller(held)
    one = first.buys(1)
    shop.log.away = True
    first.ends()

    other = second.buys(2)
    second.ends()

    assert of_the_key(shop) == [(one.id, 1)]
    assert other.id == one.id


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("lost", ["send", "reply"])
def test_the_key_of_an_op_in_doubt_is_found(shop: Shop, caller: Make, held: bool, lost: str):
    first, second = caller(False), caller(held)

    def broken(where: str) -> None:
        if where == lost:
            raise ConnectionError("on purpose")

    shop.log.fault = broken
    one = first.buys(1)
    shop.log.fault = lambda where: None
    other = second.buys(2)
    second.ends()

    assert of_the_key(shop) == [(one.id, 1)]
    assert other.id == one.id


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
    [(row, _)] = of_the_key(shop)
    assert row == one.id == other.id


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("away", [True, False])
def test_an_op_that_is_spooled_first_by_wish_has_the_keys_id(shop: Shop, caller: Make, held: bool, away: bool):
    waiting, wishing, last = caller(True), caller(False), caller(held)
    shop.log.away = away
    told = waiting.buys(1).id

    one = wishing.buys(2, durability="spooled")
    other = last.buys(3)
    last.ends()
    waiting.ends()

    assert (one.id, other.id) == (told, told)
    assert of_the_key(shop) == [(told, 2)]


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
def test_what_was_spooled_by_wish_is_found_though_redis_goes_then(shop: Shop, caller: Make, held: bool):
    wishing, second = caller(False), caller(held)
    one = wishing.buys(1, durability="spooled")
    shop.log.away = True

    other = second.buys(2)
    second.ends()

    assert other.id == one.id
    assert of_the_key(shop) == [(one.id, 1)]


def test_a_call_that_meets_a_redis_that_is_gone_asks_it_for_the_key_once_at_most(
    shop: Shop, caller: Make, monkeypatch: pytest.MonkeyPatch
):
    asked, reserve = list[str](), shop.log.reserve

    def counted(bucket: int, key: str, row_id: int) -> int:
        asked.append(key)
        return int(reserve(bucket, key, row_id))

    monkeypatch.setattr(shop.log, "reserve", counted)
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

    assert asked == ["form 1"]


def test_a_drain_tells_a_promise_once(shop: Shop, caller: Make, monkeypatch: pytest.MonkeyPatch):
    shop.log.away = True
    caller(False).buys(1)
    shop.log.away = False
    assert shop.drain().empty
    told: list[Any] = []
    monkeypatch.setattr(shop.log, "reserve", lambda *arguments: told.append(arguments))

    assert shop.drain().empty

    assert told == []


@pytest.mark.parametrize("held", [True, False])
def test_a_promise_is_no_op(shop: Shop, caller: Make, held: bool):
    failing, again = caller(True), caller(held)
    shop.log.away = True
    told = failing.buys(1).id  # and its request fails

    receipt = again.buys(2)
    again.ends()

    assert receipt.id == told
    assert of_the_key(shop) == [(told, 2)]


def test_threads_and_processes_that_meet_in_the_spool_at_the_same_moment_are_told_one_id(shop: Shop, caller: Make):
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
    assert of_the_key(shop) == [(receipts[0].id, 1)]
    assert {receipt.id for receipt in receipts} == {receipts[0].id}


# hosts ------------------------------------------------------------------------------------------------------------


@MODES
def test_hosts_agree_through_redis_and_a_host_remembers_what_it_heard(
    shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool]
):
    other_host = elsewhere(shop, tmp_path)
    shop.buy(0, other_host)
    first, second, third = caller(held[0]), caller(held[1], other_host), caller(held[0], other_host)
    one, other = first.buys(1), second.buys(2)
    shop.log.away = True
    last = third.buys(3)
    shop.log.away = False
    for request in (third, second, first):
        request.ends()
    other_host._breaker.close()
    assert other_host.drainer.drain().empty  # type: ignore[union-attr]  # it has a spool

    [(row, _)] = of_the_key(shop)
    assert row == one.id == other.id == last.id
    other_host.close()


# what is not promised: one row all the same ------------------------------------------------------------------------


@MODES
def test_hosts_that_cannot_ask_redis_may_tell_two_ids_but_make_one_row(
    shop: Shop, caller: Make, tmp_path: Path, held: tuple[bool, bool]
):
    other_host = elsewhere(shop, tmp_path)
    shop.buy(0, other_host)
    first, second = caller(held[0]), caller(held[1], other_host)
    shop.log.away = True
    one, other = first.buys(1), second.buys(2)
    first.ends()
    second.ends()
    shop.log.away = False
    other_host._breaker.close()
    assert other_host.drainer.drain().empty  # type: ignore[union-attr]  # it has a spool

    [(row, _)] = of_the_key(shop)

    assert one.id != other.id
    assert row in (one.id, other.id)
    assert {one.status(), other.status()} == {"applied"}
    other_host.close()


def test_a_file_that_cannot_be_written_costs_the_promise_and_not_the_call(
    shop: Shop, caller: Make, monkeypatch: pytest.MonkeyPatch
):
    held = caller(True)
    shop.log.away = True

    def broken(*arguments: Any) -> int:
        raise SpoolUnavailable("app.spool", "on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.spool.key_promises.Promises.made", broken)
        receipt = held.buys(1)
    held.ends()

    assert of_the_key(shop) == [(receipt.id, 1)]


# the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "app.spool", 10_000_000)
    yield made
    made.close()


def test_a_key_keeps_the_first_id_per_bucket_and_letter_by_letter(spool: Spool):
    assert spool.promises.made(3, "k", 2**62) == 2**62
    assert spool.promises.made(3, "k", 5) == 2**62
    assert spool.promises.made(4, "k", 6) == 6
    assert spool.promises.made(3, "K", 7) == 7


def test_a_promise_that_another_host_was_before_is_corrected(spool: Spool):
    spool.promises.made(3, "k", 5)
    spool.promises.made(4, "k", 6)

    spool.promises.corrected(3, "k", 2**62)

    assert spool.promises.made(3, "k", 7) == 2**62
    assert spool.promises.made(4, "k", 7) == 6


def test_a_promise_ends_with_the_time_that_redis_keeps_a_key(spool: Spool, monkeypatch: pytest.MonkeyPatch):
    spool.promises.made(3, "k", 5)
    now_ms = clock.wall_ms()
    monkeypatch.setattr("pipeline.clock.wall_ms", lambda: now_ms + KEPT_MS - 60_000)
    assert spool.promises.made(3, "k", 6) == 5

    monkeypatch.setattr("pipeline.clock.wall_ms", lambda: now_ms + KEPT_MS + 60_000)
    assert spool.promises.made(3, "k", 6) == 6
    assert spool.promises.made(3, "k", 7) == 6


def test_of_too_many_promises_the_newest_stay(tmp_path: Path):
    spool = Spool(tmp_path / "small.spool", 3 * ROOM_BYTES)
    for row_id in range(1, 6):
        spool.promises.made(3, f"k{row_id}", row_id)

    assert [spool.promises.made(3, f"k{row_id}", 9) for row_id in (3, 4, 5, 1)] == [3, 4, 5, 9]
    spool.close()


def test_redis_is_told_once_and_of_what_was_spooled_only(spool: Spool):
    for bucket in (3, 4, 5):
        spool.promises.made(bucket, "k", bucket)
    spool.promises.tell(3, "k")
    spool.promises.tell(4, "k")
    assert spool.promises.untold() == [Promise(3, "k", 3), Promise(4, "k", 4)]

    spool.promises.told([Promise(3, "k", 3)])

    assert spool.promises.untold() == [Promise(4, "k", 4)]
    assert spool.promises.made(3, "k", 9) == 3


def test_a_promise_costs_no_fsync_and_an_op_after_it_does(spool: Spool):
    levels: list[int] = []

    def level(**how: bool) -> None:
        with spool.file.writing(**how) as db:
            levels.append(db.execute("PRAGMA synchronous").fetchone()[0])

    level()
    spool.promises.made(3, "k", 5)
    level(synced=False)
    level()

    assert levels == [FULL, NORMAL, FULL]


def elsewhere(shop: Shop, folder: Path) -> Client:
    """Return a client of another host."""
    before, shop.folder = shop.folder, folder / "elsewhere"
    shop.folder.mkdir()
    client = shop.another()
    shop.folder = before
    return client
