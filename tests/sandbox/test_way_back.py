"""The way back: a host that has gone to the spool is on the direct way again, though others never stop spooling."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sandbox.spooling import Shop

from pipeline import clock
from pipeline import spool as store
from pipeline.bounds import WaitBudgetSpent
from pipeline.enqueue import spool_drain, spool_fallback
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import LogUnavailable
from pipeline.model import START
from pipeline.model.receipt import Receipt
from pipeline.oplog.redis.connection import translated


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    made.buy(0)
    made.log.away = True
    made.buy(1)
    made.log.away = False
    yield made
    made.client.close()
    made.box.client.close()
    made.db.close()


def test_ops_that_never_stop_coming_do_not_keep_a_host_from_the_direct_way(shop: Shop):
    bought = 1

    def buys(step: str) -> None:
        nonlocal bought
        if step == "sent":
            bought += 1
            assert bought < 100, "it sends what waits, and never the last of it"
            assert shop.buy(bought).position is None

    shop.client.drainer._step = buys

    assert shop.drain().empty

    assert not shop.client.spool.waiting()
    assert shop.buy(bought + 1).position is not None
    assert shop.bought() == list(range(bought + 2))


def test_large_ops_are_sent_while_others_go_on_spooling_and_only_small_ones_in_the_pause(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    for module in (spool_drain, store):
        monkeypatch.setattr(module, "HEAD_BYTES", 1_000)
    spool, drainer, bucket = shop.client.spool, shop.client.drainer, shop.client.topology.buckets_of("s0")[-1]
    for _ in range(3):
        spool.add({bucket: [b"[%2000d]" % 0]})
    spool.add({bucket: [b"[]"]})
    in_pause: list[int] = []
    hand_over = drainer._hand_over

    def noted(last: list[store.Spooled], *rest: Any) -> bool:
        in_pause.extend(len(op.payload) for op in last)
        return hand_over(last, *rest)

    monkeypatch.setattr(drainer, "_hand_over", noted)

    assert shop.drain().empty

    assert max(in_pause, default=0) < 1_000
    assert len(shop.log.read({bucket: START}, {bucket: 9})[bucket]) >= 4


def test_no_op_passes_an_older_one_of_its_host_on_the_way_back_whoever_sent_that_first(shop: Shop):
    spool, (first, parent, child) = shop.client.spool, shop.client.topology.buckets_of("s0")[-3:]
    spool.add({first: [b"[]"]})
    spool.add({parent: [b"[]"]}, numbered={parent: (4711, 1)})  # sent before, perhaps in vain
    spool.add({child: [b"[]"]})

    seen = seen_after_each_call(shop)

    assert [one for one in seen if child in one and parent not in one] == []
    assert {parent, child} <= seen[-1]


def test_no_op_passes_an_older_one_that_others_spool_in_another_bucket_on_the_way_back(shop: Shop):
    spool, (child, parent) = shop.client.spool, shop.client.topology.buckets_of("s0")[-2:]
    spool.add({child: [b"[]"] * 2_000})

    def others(step: str) -> None:
        if step == "send":
            spool.add({parent: [b"[]"]})
            spool.add({child: [b"[]"]})
            shop.client.drainer._step = noted

    seen: list[tuple[bool, int]] = []

    def noted(step: str) -> None:
        if step == "sent":
            tails = shop.log.tails((parent, child))
            seen.append((parent in tails, tails[child].seq + 1 if child in tails else 0))

    shop.client.drainer._step = others
    assert shop.drain().empty

    assert [one for one in seen if one[1] > 2_000 and not one[0]] == []
    assert seen[-1] == (True, 2_001)


def test_what_is_on_every_shard_goes_first_as_rows_of_all_may_refer_to_it(shop: Shop):
    spool, reference = shop.client.spool, shop.client.topology.reference_bucket
    spool.add({reference: [b"[]"]})
    spool.add({bucket: [b"[]"] for bucket in shop.client.topology.buckets_of("s0")[:2]})

    assert reference in seen_after_each_call(shop)[0]


def seen_after_each_call(shop: Shop) -> list[set[int]]:
    """Drain the spool, and return the buckets that have entries after each call."""
    seen: list[set[int]] = []
    shop.client.drainer._step = lambda step: step != "sent" or seen.append({*shop.log.tails(range(17))})
    assert shop.drain().empty
    return seen


def test_who_waits_for_its_turn_while_the_last_ops_are_sent_goes_directly_behind_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    receipts: list[Receipt] = []
    other = shop.another()
    shop.buy(2, other)
    thread = threading.Thread(target=lambda: receipts.append(shop.buy(4, other)))
    drainer, add, asked = shop.client.drainer, other.spool.add, threading.Event()
    send_last = drainer._send_last

    def at_the_door(*arguments: Any, **options: Any) -> Any:
        asked.set()
        return add(*arguments, **options)

    def another_comes(last: Any) -> Any:
        thread.start()
        assert asked.wait(30)
        return send_last(last)

    def buys(step: str) -> None:
        if step == "sent":
            drainer._step = lambda step: None
            shop.buy(3)

    monkeypatch.setattr(other.spool, "add", at_the_door)
    monkeypatch.setattr(drainer, "_send_last", another_comes)
    monkeypatch.setattr("pipeline.enqueue.spool_drain.LAST_S", 30)
    drainer._step = buys

    assert shop.drain().empty
    thread.join(30)

    [last] = receipts
    assert last.position is not None
    assert shop.bought() == [0, 1, 2, 3, 4]


def test_others_wait_only_for_a_moment_where_redis_hangs_at_the_last_ops(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    drainer, hangs = shop.client.drainer, threading.Event()
    send_last = drainer._send_last

    def buys(step: str) -> None:
        if step == "sent":
            drainer._step = lambda step: None
            shop.buy(2)

    def hang(last: Any) -> Any:
        assert hangs.wait(60)
        return send_last(last)

    drainer._step = buys
    monkeypatch.setattr(drainer, "_send_last", hang)
    done = drainer.drain()  # it returns while Redis hangs
    assert (done.sent, done.empty) == (1, False)
    assert "the last ops wait" in done.why

    assert shop.buy(3).position is None
    monkeypatch.setattr(drainer, "_send_last", send_last)
    hangs.set()
    assert any(shop.drain().empty for _ in clock.polls(30))
    assert shop.bought() == [0, 1, 2, 3]


@pytest.mark.parametrize(("took_s", "given_s"), [(0.001, 0.02), (0.06, 0.12), (60.0, 0.25)])
def test_the_last_ops_have_twice_as_long_as_redis_took_for_those_before_them_and_the_pause_is_told(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, took_s: float, given_s: float
):
    past_s, given = [clock.mono_s()], list[float]()
    drainer, resend, bounded = shop.client.drainer, shop.client.publisher.resend, spool_drain.WaitBudget
    monkeypatch.setattr(clock, "mono_s", lambda: past_s[-1])

    def slowly(*arguments: Any, **options: Any) -> Any:
        past_s.append(past_s[-1] + took_s)
        return resend(*arguments, **options)

    def wait_budget(for_s: float) -> Any:
        given.append(round(for_s, 2))
        return bounded(for_s)

    def buys(step: str) -> None:
        if step == "sent":
            drainer._step = lambda step: None
            shop.buy(2)

    monkeypatch.setattr(shop.client.publisher, "resend", slowly)
    monkeypatch.setattr(spool_drain, "WaitBudget", wait_budget)
    drainer._step = buys
    done = drainer.drain()

    assert given[-1] == given_s
    assert done.pause_s == pytest.approx(took_s)  # as long as Redis took: the first ops kept nobody waiting
    assert drainer.drain().pause_s == 0.0


def test_redis_that_forgets_all_before_the_last_ops_are_sent_gets_them_under_a_new_epoch(shop: Shop):
    failing = [True]

    def fails_over(step: str) -> None:
        if step == "settle" and failing:
            failing.clear()
            shop.buy(2)
            shop.log.fail_over()

    shop.client.drainer._step = fails_over
    shop.bought()

    assert any(shop.drain().empty for _ in clock.polls(30))

    assert shop.buy(3).position is not None
    assert shop.bought()[-2:] == [2, 3]


# the breaker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "silent"), [
    (ConnectionError("refused"), True),
    (TimeoutError("no reply"), True),
    (WaitBudgetSpent("a schema took its time"), False),
])  # fmt: skip
def test_only_redis_own_silence_opens_the_breaker(shop: Shop, what: Exception, silent: bool):
    away = RedisAway(shop.client.spool)
    with pytest.raises(LogUnavailable) as raised, translated():
        raise what

    away.hear(raised.value)

    assert away.tripped is silent


def test_an_open_breaker_lets_the_next_call_try_within_a_quarter_of_a_second(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    away, now = RedisAway(shop.client.spool), clock.mono_s()
    monkeypatch.setattr(spool_fallback.clock, "mono_s", lambda: now)
    away.hear(LogUnavailable("refused", sent=False, silent=True))
    assert away.tripped

    monkeypatch.setattr(spool_fallback.clock, "mono_s", lambda: now + 0.25)

    assert not away.tripped


def test_a_process_with_an_open_breaker_goes_directly_once_another_has_drained_the_spool(shop: Shop):
    other = shop.another()
    shop.log.away = True
    with pytest.raises(LogUnavailable) as raised:
        shop.log.epoch("s0")
    other.away.hear(raised.value)
    shop.log.away = False
    assert shop.drain().empty
    assert other.away.tripped

    assert shop.buy(2, other).position is not None
