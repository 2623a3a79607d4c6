"""Publishing: whatever happens to the log, an op is in it once, or its loss is known by name."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.sandbox.publishing import REFERENCE, TOPOLOGY, Shop, authority, breaking

from pipeline import clock
from pipeline.enqueue import producer as acknowledged
from pipeline.enqueue.producer import FRESH_S, Producer
from pipeline.enqueue.publisher import Publisher
from pipeline.enqueue.shipment import OpPlace, Shipment
from pipeline.errors import LogUnavailable, PipelineFull, ShardUnavailable
from pipeline.model import START, Position
from pipeline.shard.records import LostRange


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.publisher.close()


# the ordinary way -------------------------------------------------------------------------------------------------


def test_ops_of_one_caller_stand_in_its_order_with_dense_sequences(shop: Shop):
    places = [shop.ship(0, b"%d" % n) for n in range(3)]

    assert shop.payloads(0) == [b"0", b"1", b"2"]
    assert [place.position for place in places] == [Position(101, n) for n in range(3)]
    assert [place.seq for place in places] == [1, 2, 3]
    assert len({place.producer for place in places}) == 1


def test_many_ops_go_in_one_call_per_shard_and_get_the_place_of_each_buckets_first(shop: Shop):
    sent: list[str] = []
    shop.log.fault = sent.append
    buckets = {0: [b"a", b"b"], 1: [b"c"], 3: [b"d"]}

    places = shop.publisher.ship(Shipment(buckets))

    assert {b: p.position.seq for b, p in places.items()} == {0: 0, 1: 0, 3: 0}
    assert sent.count("reply") == len({TOPOLOGY.shard_of(bucket) for bucket in buckets})
    assert [shop.payloads(bucket) for bucket in (0, 1, 3)] == [[b"a", b"b"], [b"c"], [b"d"]]


def test_the_bell_is_rung_for_the_shards_that_the_log_names(shop: Shop):
    shop.ship(0, b"a")
    shop.ship(0, b"b")
    shop.ship(REFERENCE, b"c")

    assert shop.bell.rung == ["s0", "s1"]


def test_an_epoch_is_raised_once_per_shard_and_once_for_the_reference_log(shop: Shop):
    for bucket in (0, 0, 3, REFERENCE, 3, 0, REFERENCE):
        shop.ship(bucket, b"a")

    assert shop.raised == ["s0", "s1", "*"]


def test_an_idempotency_key_gives_the_first_receipt_and_the_first_rows_id(shop: Shop):
    first = shop.ship(0, b"a", key="k", row_id=77)
    other = Publisher(shop.log, TOPOLOGY, shop.bell, authority(shop))

    again = other.ship(Shipment({0: (b"b",)}, "k", 78))[0]

    assert again == OpPlace(first.position, first.producer, first.seq, 77)
    assert shop.payloads(0) == [b"a"]


# replies that are lost --------------------------------------------------------------------------------------------


def test_a_lost_reply_neither_doubles_nor_loses_the_op(shop: Shop):
    shop.ship(0, b"a")
    shop.log.fault = breaking("reply")

    place = shop.ship(0, b"b")

    assert shop.payloads(0) == [b"a", b"b"]
    assert (place.position, place.seq) == (Position(101, 1), 2)
    assert shop.ship(0, b"c").seq == 3


def test_a_lost_reply_under_an_idempotency_key_does_not_upset_the_sequence(shop: Shop):
    shop.ship(0, b"a")
    shop.log.fault = breaking("reply")

    place = shop.ship(0, b"b", key="k", row_id=7)

    assert (place.position, place.seq, place.row_id) == (Position(101, 1), 2, 7)
    assert shop.ship(0, b"c").seq == 3
    assert shop.payloads(0) == [b"a", b"b", b"c"]
    assert shop.lost == []


@pytest.mark.parametrize("where", [("send", "send"), ("reply", "reply"), ("reply", "send")])
def test_a_producer_whose_last_op_is_in_doubt_is_never_used_on(shop: Shop, where: tuple[str, ...]):
    first = shop.ship(0, b"a")
    shop.log.fault = breaking(*where)

    with pytest.raises(LogUnavailable):
        shop.ship(0, b"in doubt")
    after = shop.ship(0, b"b")

    assert after.producer != first.producer
    assert after.seq == 1
    assert shop.payloads(0) in ([b"a", b"b"], [b"a", b"in doubt", b"b"])
    assert shop.lost == []


def test_a_full_log_refuses_and_the_next_op_goes_on_as_if_nothing_had_been(shop: Shop):
    shop.ship(0, b"a")
    shop.log.set_full("on purpose")

    with pytest.raises(PipelineFull, match="on purpose"):
        shop.ship(0, b"b")
    shop.log.set_full(None)
    shop.ship(0, b"c")

    assert shop.payloads(0) == [b"a", b"c"]
    assert shop.lost == []


# servers that change ----------------------------------------------------------------------------------------------


def test_a_restarted_server_costs_a_new_epoch_and_nothing_else(shop: Shop):
    first = shop.ship(0, b"a")
    shop.log.restart()

    after = shop.ship(0, b"b")

    assert shop.payloads(0) == [b"a", b"b"]
    assert (after.position, after.producer, after.seq) == (Position(102, 0), first.producer, 2)
    assert shop.lost == []


def test_a_producer_goes_on_behind_what_a_promoted_replica_had_not_seen(shop: Shop):
    """The worker that applies the op finds the hole in its producer's sequence."""
    first = shop.ship(0, b"a")
    replica = shop.log.replica()
    shop.ship(0, b"lost 1")
    shop.ship(0, b"lost 2")
    shop.log.fail_over(replica)

    after = shop.ship(0, b"b")

    assert [(entry.producer_seq, entry.payload) for entry in shop.entries(0)] == [(1, b"a"), (4, b"b")]
    assert (after.producer, after.seq) == (first.producer, 4)


def test_an_op_whose_answer_was_lost_with_the_server_goes_on_under_its_number(shop: Shop):
    """A worker may have read it from the old server: under another number it would be applied twice."""
    shop.ship(0, b"a")
    first = shop.ship(0, b"b")
    tries: list[str] = []

    def fault(where: str) -> None:
        tries.append(where)
        if tries == ["send", "reply"]:
            shop.log.fail_over()
            raise ConnectionError("the answer is lost, and so is the server")

    shop.log.fault = fault

    place = shop.ship(0, b"c")

    assert (place.producer, place.seq) == (first.producer, 3)
    assert shop.payloads(0) == [b"c"]


def test_an_op_in_doubt_keeps_its_number_while_no_epoch_can_be_raised(shop: Shop):
    first = shop.ship(0, b"a")
    shop.log.restart()
    shop.away = True

    with pytest.raises(ShardUnavailable) as raised:
        shop.ship(0, b"b")

    assert raised.value.numbered == {0: (first.producer, 2)}


@pytest.mark.parametrize("where", [1, 3], ids=["same shard", "another shard"])
def test_what_was_lost_of_another_bucket_is_named_too_though_nobody_writes_there_any_more(shop: Shop, where: int):
    first = shop.ship(0, b"lost")
    shop.ship(where, b"lost too")
    shop.log.fail_over()

    shop.ship(where, b"a")
    shop.publisher.settle()

    assert LostRange(0, 0, first.producer, 1, 1) in shop.lost


def test_what_was_lost_is_named_though_the_process_sends_nothing_more(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acknowledged, "LOOK_S", 0.05)
    first = shop.ship(0, b"lost")
    shop.log.fail_over()

    for _ in clock.polls(60):
        if shop.lost:
            break

    assert shop.lost == [LostRange(0, 0, first.producer, 1, 1)]


def test_what_a_sender_that_failed_was_told_of_other_buckets_is_named(shop: Shop):
    first = shop.ship(0, b"lost")
    shop.log.fault = breaking("send", "send")
    with pytest.raises(LogUnavailable):
        shop.ship(1, b"never sent")
    shop.log.fail_over()

    shop.publisher.settle()

    assert shop.lost == [LostRange(0, 0, first.producer, 1, 1)]


def test_what_idle_producers_lost_is_named_when_another_finds_the_new_server(shop: Shop):
    idle, busy = Producer(shop.log.line()), Producer(shop.log.line())
    shop.publisher.idle.extend([idle, busy])
    shop.ship(0, b"by the busy one")
    shop.publisher.idle.rotate()
    shop.ship(0, b"by the idle one")
    shop.publisher.idle.rotate()
    shop.log.fail_over()

    shop.ship(1, b"a")
    shop.publisher.settle()

    assert {(lost.producer, lost.first, lost.last) for lost in shop.lost} == {
        (idle.producer, 1, 1),
        (busy.producer, 1, 1),
    }


def test_a_loss_that_cannot_be_recorded_yet_is_recorded_later(shop: Shop):
    first = shop.ship(0, b"lost")
    shop.log.fail_over()
    shop.ship(1, b"a")
    shop.away = True
    assert not shop.publisher.settle()
    assert shop.lost == []

    shop.away = False
    shop.publisher.settle()

    assert shop.lost == [LostRange(0, 0, first.producer, 1, 1)]
    assert shop.publisher.settle(), "nothing is in question any more"


def test_a_server_whose_lineage_never_holds_still_is_an_error_that_may_be_tried_again(shop: Shop):
    shop.log.fault = lambda where: shop.log.restart() if where == "send" else None

    with pytest.raises(LogUnavailable, match="lineage keeps changing") as raised:
        shop.ship(0, b"a")

    assert raised.value.retryable
    assert not raised.value.sent


# threads and processes --------------------------------------------------------------------------------------------


def test_threads_never_share_a_producer_at_a_time(shop: Shop):
    def produce(name: int) -> None:
        for n in range(50):
            shop.ship(0, b"%d %d" % (name, n))

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    found = [payload.split() for payload in shop.payloads(0)]
    assert len(found) == 400
    for name in range(8):
        assert [int(n) for who, n in found if int(who) == name] == list(range(50))
    assert shop.lost == []
    entries = shop.log.read({0: START}, {0: 1000})[0]
    for producer in {entry.producer for entry in entries}:
        seqs = [entry.producer_seq for entry in entries if entry.producer == producer]
        assert seqs == list(range(1, len(seqs) + 1))


_shops: list[Shop] = []


def test_a_fork_goes_on_as_another_producer(shop: Shop):
    here = shop.ship(0, b"parent")
    _shops[:] = [shop]

    with multiprocessing.get_context("fork").Pool(1) as pool:
        there: Any = pool.apply(_publish_in_child)

    assert there.producer != here.producer
    assert there.seq == 1
    assert shop.ship(0, b"parent again").producer == here.producer


def _publish_in_child() -> OpPlace:
    return _shops[0].ship(0, b"child")


def test_a_producer_that_the_log_may_have_forgotten_starts_anew(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    first = shop.ship(0, b"a")
    now = clock.mono_s()
    monkeypatch.setattr(clock, "mono_s", lambda: now + FRESH_S + 60)

    assert shop.ship(0, b"b").producer != first.producer
