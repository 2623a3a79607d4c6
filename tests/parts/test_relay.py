"""Relaying under a given producer: however often, by whomever, through whatever server, an op is in the log once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.sandbox.publishing import TOPOLOGY, Shop, authority, breaking

from pipeline.enqueue.producer import Run
from pipeline.enqueue.publisher import Publisher
from pipeline.errors import LogUnavailable
from pipeline.model import Position
from pipeline.shard.records import LostRange

MINE = 2**63 - 1


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.publisher.close()


def send(shop: Shop, first: int, *payloads: bytes, bucket: int = 0) -> Position:
    return shop.publisher.resend(MINE, {bucket: Run(first, payloads)})[bucket]


def test_a_run_sent_again_adds_nothing_and_tells_where_it_stands(shop: Shop):
    first = send(shop, 1, b"a", b"b")

    again = send(shop, 1, b"a", b"b")

    assert shop.payloads(0) == [b"a", b"b"]
    assert first == again == Position(101, 1)


def test_of_a_run_that_the_log_has_in_part_only_the_rest_is_added(shop: Shop):
    send(shop, 1, b"a", b"b")

    end = send(shop, 1, b"a", b"b", b"c", b"d")

    assert shop.payloads(0) == [b"a", b"b", b"c", b"d"]
    assert end == Position(101, 3)
    assert shop.lost == []


def test_runs_of_several_shards_go_together_and_ring_them(shop: Shop):
    reached = shop.publisher.resend(MINE, {0: Run(1, [b"a"]), 3: Run(1, [b"b", b"c"])})

    assert [shop.payloads(bucket) for bucket in (0, 3)] == [[b"a"], [b"b", b"c"]]
    assert {bucket: position.seq for bucket, position in reached.items()} == {0: 0, 3: 1}
    assert sorted(shop.bell.rung) == ["s0", "s1"]


def test_an_emptied_server_takes_the_rest_behind_a_hole_that_its_worker_finds(shop: Shop):
    send(shop, 1, b"a", b"b")
    shop.log.fail_over()

    send(shop, 3, b"c")
    send(shop, 3, b"c", b"d")

    assert [(entry.producer_seq, entry.payload) for entry in shop.entries(0)] == [(3, b"c"), (4, b"d")]


def test_what_was_sent_and_is_held_by_nobody_is_named_if_it_is_lost(shop: Shop):
    at = send(shop, 1, b"a", b"b")
    shop.publisher.remember(MINE, {0: (2, at)})
    shop.log.fail_over()

    shop.publisher.settle()

    assert shop.lost == [LostRange(0, 0, MINE, 1, 2)]


def test_what_the_caller_still_holds_is_sent_again_to_an_emptied_server_and_nothing_is_lost(shop: Shop):
    send(shop, 1, b"a", b"b")
    shop.log.fail_over()

    send(shop, 1, b"a", b"b", b"c")

    assert shop.payloads(0) == [b"a", b"b", b"c"]
    assert shop.lost == []


@pytest.mark.parametrize("where", [("send", "send"), ("reply", "reply"), ("reply", "send")])
def test_a_run_whose_outcome_is_unknown_is_simply_sent_again(shop: Shop, where: tuple[str, ...]):
    shop.log.fault = breaking(*where)
    with pytest.raises(LogUnavailable):
        send(shop, 1, b"a", b"b")

    send(shop, 1, b"a", b"b")

    assert shop.payloads(0) == [b"a", b"b"]


def test_an_op_in_doubt_goes_on_under_its_senders_own_number(shop: Shop):
    first = shop.ship(0, b"a")
    shop.log.fault = breaking("reply", "reply")
    with pytest.raises(LogUnavailable):
        shop.ship(0, b"in doubt")

    shop.publisher.resend(first.producer, {0: Run(2, [b"in doubt"])})

    assert shop.payloads(0) == [b"a", b"in doubt"]


def test_many_that_relay_the_same_at_once_add_it_once(shop: Shop):
    def relay() -> None:
        own = Publisher(shop.log, TOPOLOGY, shop.bell, authority(shop))
        for end in range(1, 30):
            own.resend(MINE, {0: Run(1, [b"%d" % n for n in range(end)])})

    send(shop, 1, b"0")
    threads = [threading.Thread(target=relay) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert shop.payloads(0) == [b"%d" % n for n in range(29)]
    assert shop.lost == []
